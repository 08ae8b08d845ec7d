"""Process life cycle: start roles, report readiness, drain on SIGTERM, exit with a status.

A second signal cancels open work and a third ends the process at once; accepted mail is in the log and is not lost.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, Protocol

import structlog

from mail import logging_setup
from mail.directory import DirectoryUnusable
from mail.log import LogUnusable
from mail.printable import escape
from mail.settings_file import variable_name
from mail.settings_section import SettingsError
from mail.signals import EXIT_INTERRUPTED, Signals
from mail.spool import SpoolUnavailable
from mail.telemetry.runtime import DRAINING, LOOP_LAG, LOOP_TASKS

logger = structlog.get_logger()

EXIT_OK = 0
EXIT_UNUSABLE = 2  # an operator must fix something; the line on stderr names it
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h

_HEARTBEAT_SECONDS = 0.25
_STALLED_SECONDS = 30.0  # without a heartbeat for this time the event loop is stuck


class ServiceError(Exception):
    """A role cannot start or continue, and a retry would not help; one line for operators that names the cause."""


def listen_failure(error: OSError) -> str:
    return "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))


def cannot_listen(setting: str, address: str, error: OSError) -> ServiceError:
    """The error for an address that cannot be bound. `setting`: "http.listen"."""
    return ServiceError(
        f"{setting}: cannot listen on {address}: {listen_failure(error)}; set another address there, or by "
        f"{variable_name(setting)}=HOST:PORT"
    )


class Role(Protocol):
    @property
    def name(self) -> str: ...

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Start, call `ready()` once, work until `stop` is set, drain, return.

        Raises ServiceError for what an operator must fix (a port in use). Any other exception is a bug.
        """
        ...


class Health:
    """State behind /healthz and /readyz: ready roles, drain, last heartbeat of the event loop."""

    def __init__(self) -> None:
        self.roles: dict[str, bool] = {}
        self.is_draining = False
        self._last_heartbeat = time.monotonic()

    @property
    def is_ready(self) -> bool:
        return bool(self.roles) and all(self.roles.values()) and not self.is_draining

    @property
    def is_alive(self) -> bool:
        return time.monotonic() - self._last_heartbeat < _STALLED_SECONDS

    async def measure_loop_lag(self) -> None:
        """Measure the lag of the event loop until cancelled; its tasks are counted at each scrape."""
        loop = asyncio.get_running_loop()
        LOOP_TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
        while True:
            due = time.monotonic() + _HEARTBEAT_SECONDS
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            self._last_heartbeat = time.monotonic()
            LOOP_LAG.observe(max(0.0, self._last_heartbeat - due))


async def run_roles(
    roles: Sequence[Role],
    drain: timedelta,
    on_ready: Callable[[], None] = lambda: None,
    *,
    support: Sequence[Role] = (),
    health: Health | None = None,
    signals: Signals | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Run `roles` until a signal or `stop`, then drain them for at most `drain`. Without `signals`, handlers are
    installed.

    `on_ready` is called once when every role is ready. `support` (metrics and health over HTTP) starts before the
    roles, ends after them and is part of the readiness. When roles fail, all are stopped, and the error of
    the first failed one in `[*roles, *support]` is raised.
    """
    health = health or Health()
    stop = signals.stop if signals is not None else stop or asyncio.Event()
    all_roles = [*support, *roles]
    health.roles = {role.name: False for role in all_roles}
    support_stop = asyncio.Event()

    is_serving = False

    def ready(name: str) -> Callable[[], None]:
        def mark_ready() -> None:
            nonlocal is_serving
            if health.roles[name]:
                return
            health.roles[name] = True
            logger.debug("ready", role=name)
            if all(health.roles.values()) and not stop.is_set():
                is_serving = True
                gc.collect()  # objects made at start are permanent: exclude them from later collections
                gc.freeze()
                on_ready()

        return mark_ready

    async def run(role: Role, end: asyncio.Event) -> None:
        try:
            await role.run(ready(role.name), end)
            if not end.is_set():
                raise RuntimeError(f"{role.name} ended unexpectedly")
        finally:
            health.roles[role.name] = False
            stop.set()

    with Signals(stop) if signals is None else nullcontext(signals) as handlers:
        handlers.end_startup()
        force_exit = handlers.force_exit
        heartbeat = asyncio.create_task(health.measure_loop_lag(), name="heartbeat")
        support_tasks = [asyncio.create_task(run(role, support_stop), name=role.name) for role in support]
        role_tasks = [asyncio.create_task(run(role, stop), name=role.name) for role in roles]
        try:
            await stop.wait()
            health.is_draining = True
            DRAINING.set(1)
            if is_serving:
                logger.info("draining", timeout_seconds=drain.total_seconds())
            await _wait_for(role_tasks, drain, force_exit)
            support_stop.set()
            await _wait_for(support_tasks, timedelta(seconds=2), force_exit)
        finally:
            tasks = [heartbeat, *role_tasks, *support_tasks]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            DRAINING.set(0)
    for task in (*role_tasks, *support_tasks):
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _wait_for(tasks: Sequence[asyncio.Task[None]], limit: timedelta, force_exit: asyncio.Event) -> None:
    """Wait for the tasks for at most `limit`, or until a second signal."""
    if not tasks:
        return
    forced = asyncio.create_task(force_exit.wait())
    finished = asyncio.create_task(asyncio.wait(tasks))  # asyncio.wait does not cancel them when it is cancelled
    try:
        await asyncio.wait([forced, finished], timeout=limit.total_seconds(), return_when=asyncio.FIRST_COMPLETED)
        unfinished = [task.get_name() for task in tasks if not task.done()]
        if unfinished:
            event = "drain ended by a signal" if force_exit.is_set() else "drain timed out"
            logger.warning(event, roles_cancelled=unfinished)
    finally:
        forced.cancel()
        finished.cancel()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run `main()` and return the exit status. An error is one line on stderr; the traceback of a bug is logged."""
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(main())
    except Exception as error:  # the outermost handler
        return report(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The factory of uvloop's event loop; None: asyncio's own."""
    try:
        import uvloop
    except ImportError:  # not built for this platform
        return None
    return uvloop.new_event_loop


def report(error: Exception) -> int:
    """Print the cause in one line on stderr and return the exit status."""
    while isinstance(error, ExceptionGroup):  # the first error is usually the cause
        error = error.exceptions[0]
    if isinstance(error, ServiceError | LogUnusable | DirectoryUnusable | SettingsError | SpoolUnavailable):
        _print_error(str(error))
        return EXIT_UNUSABLE
    logger.error("internal error", traceback=logging_setup.one_line_traceback(error))
    _print_error(f"internal error, please report it: {type(error).__name__}: {error}")
    return EXIT_BUG


def _print_error(text: str) -> None:
    logging_setup.print_line(f"eilpost: {escape(' '.join(text.split()))}")
