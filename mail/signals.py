"""Signal handlers of a server process.

SIGTERM, SIGINT and SIGQUIT drain the process; before the roles are started they cancel the start. SIGHUP reloads.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType

import structlog

from mail import logging_setup

logger = structlog.get_logger()

EXIT_INTERRUPTED = 130

_TERMINATING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_IGNORED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


class Signals:
    """Context with signal handlers: the first terminating signal sets `stop`, the second `force_exit`, the third ends
    the process. SIGHUP runs the functions passed to `on_reload`.
    """

    def __init__(self, stop: asyncio.Event | None = None) -> None:
        self.stop = stop or asyncio.Event()
        self.force_exit = asyncio.Event()
        self._reloads: list[Callable[[], Awaitable[None]]] = []
        self._reload_tasks: set[asyncio.Task[None]] = set()
        self._startup_task: asyncio.Task[object] | None = None  # cancelled by a terminating signal
        self._terminating = False
        self._handled: list[signal.Signals] = []
        self._had_terminal = sys.stderr is not None and sys.stderr.isatty()

    def begin_startup(self) -> None:
        """Until `end_startup`, a terminating signal cancels the current task."""
        self._startup_task = asyncio.current_task()

    def end_startup(self) -> None:
        self._startup_task = None

    def on_reload(self, function: Callable[[], Awaitable[None]]) -> None:
        self._reloads.append(function)

    def _on_terminate(self, name: str) -> None:
        if self.force_exit.is_set():
            logging_setup.flush()
            os._exit(EXIT_INTERRUPTED)
        action = "drain"
        if self._startup_task is not None:
            action = "cancel the start"
            self._startup_task.cancel()
        elif self._terminating:
            action = "end the drain"
        if self._terminating:
            self.force_exit.set()
        self._terminating = True
        self.stop.set()
        logger.info("signal", signal=name, action=action)

    def _on_hangup(self) -> None:
        if self._had_terminal and not sys.stderr.isatty():  # the terminal and the log on it are closed
            self._on_terminate("SIGHUP")
            return
        logger.info("signal", signal="SIGHUP", action="reload")
        for function in self._reloads:
            task = asyncio.create_task(_reload(function), name="reload")
            self._reload_tasks.add(task)
            task.add_done_callback(self._reload_tasks.discard)

    def _on_ignored(self, name: str) -> None:
        logger.warning("signal ignored", signal=name)

    def __enter__(self) -> Signals:
        for number in _TERMINATING:
            self._add_handler(number, self._on_terminate, number.name)
        self._add_handler(signal.SIGHUP, self._on_hangup)
        for number in _IGNORED:
            self._add_handler(number, self._on_ignored, number.name)
        return self

    def _add_handler(self, number: signal.Signals, handler: Callable[..., object], *arguments: object) -> None:
        with suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread
            asyncio.get_running_loop().add_signal_handler(number, handler, *arguments)
            self._handled.append(number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number in self._handled:
            asyncio.get_running_loop().remove_signal_handler(number)
        for task in self._reload_tasks:
            task.cancel()


async def _reload(function: Callable[[], Awaitable[None]]) -> None:
    try:
        await function()
    except Exception:  # the process continues with the last good state
        logger.exception("reload failed, the last good state stays in use")
