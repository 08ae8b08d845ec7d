"""The guard of processes: they never outlive the one that started them, whatever ends it, SIGKILL included.

They are members of the guard's process group from their first instant. It waits for the end of its standard input,
which only its starter holds open; then it kills the group with SIGKILL, frozen ones and itself included. This needs no
parent-death signal, which would follow the starting *thread* and exists on Linux only. For brokers, the demo's cluster
and tests; a real supervisor has means of its own. Python's own library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


class ChildSupervisor:
    """Start processes with `process_group=guard.group`, in this session."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # this very file
            [sys.executable, "-I", "-S", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,
        )

    @property
    def process_group(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End it, and with it all that are left in the group. Idempotent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


if __name__ == "__main__":
    # In a group of its own it gets no Ctrl-C; a hang-up of the terminal must not end it before its work.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(1):
        pass
    os.killpg(0, signal.SIGKILL)
