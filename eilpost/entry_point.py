"""Entry point of `eilpost`: signal handlers, then the command line.

The imports of the command line take some tenths of a second, and a signal during this time must not be lost or print a
traceback. Therefore this module imports nothing but the standard library.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

EXIT_INTERRUPTED = 130

_SERVERS = {"up", "demo", "ingress", "router", "delivery", "mailstore"}
_HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


def main() -> None:
    """Run the command of sys.argv."""
    _on_interrupt(_exit)  # nothing is open yet
    if os.getpid() == 1:  # in a container: the kernel drops a signal to PID 1 that has no handler
        signal.signal(signal.SIGTERM, _exit)
    if sys.argv[1:2] and sys.argv[1] in _SERVERS and not (sys.stderr is not None and sys.stderr.isatty()):
        for number in _HARMLESS:  # until mail/signals.py handles them; SIG_IGN would be inherited by children
            signal.signal(number, _ignore)
    from eilpost import cli

    _on_interrupt(signal.default_int_handler)
    try:
        try:
            cli.main()
        finally:
            _on_interrupt(_exit)  # the interpreter's shutdown would print a traceback
    except KeyboardInterrupt:  # another SIGINT while the first one was handled, or before that handler was set
        os._exit(EXIT_INTERRUPTED)


def _on_interrupt(handler: Callable[[int, FrameType | None], object]) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a script's background job ignores it
        signal.signal(signal.SIGINT, handler)


def _exit(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass
