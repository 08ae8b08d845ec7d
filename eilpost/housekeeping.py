"""The chores of a process: consumed records purged, old content swept from the spool, the backlog measured.

It never touches mail that is not settled: what may go is decided by the log (`purge`), and by the spool's age limit,
which is longer than the queue lifetime. But nodes may have been down for longer than that, and clocks jump: nothing
goes that is younger than the oldest message still in the queue, or than the oldest record nobody has read yet. A
chore that fails is logged and tried again at its next turn.
Next: `eilpost/onebox.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import structlog

from mail.log import LogUnavailable, LogUnusable
from mail.spool import SpoolUnavailable
from mail.telemetry.log import CONSUMER_LAG

if TYPE_CHECKING:
    from mail.log import Log
    from mail.record import Pending
    from mail.settings import SpoolSettings
    from mail.spool import Spool

log = structlog.get_logger()

MEASURE_EVERY = timedelta(seconds=5)
PURGE_EVERY = timedelta(seconds=30)
SWEEP_EVERY = timedelta(hours=1)
OUT_OF_ORDER = timedelta(hours=1)  # records stand about in the order of their messages; clocks differ


class Queue(Protocol):
    """What a sweep has to ask: whose content lies in the spool."""

    def open_lines(self) -> AsyncIterator[Pending]: ...

    async def oldest_unconsumed(self) -> datetime | None: ...


class Housekeeping:
    """`sweeps`: one role of a cluster looks after the spool. `others` are the queues of dedicated tenants, whose
    content lies there too.
    """

    name = "housekeeping"

    def __init__(
        self,
        *,
        settings: SpoolSettings,
        log: Log,
        spool: Spool,
        sweeps: bool = True,
        others: Callable[[], Sequence[Queue]] = lambda: (),
    ) -> None:
        self._settings = settings
        self._log = log
        self._spool = spool
        self._sweeps = sweeps
        self._others = others

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        chores = [
            asyncio.create_task(_every(MEASURE_EVERY, "measure", self.measure, stop), name="measure"),
            asyncio.create_task(_every(PURGE_EVERY, "purge", self._log.purge, stop), name="purge"),
        ]
        if self._sweeps:
            sweeping = _every(SWEEP_EVERY, "sweep", self.sweep, stop, at_once=False)
            chores.append(asyncio.create_task(sweeping, name="sweep"))
        ready()
        await asyncio.gather(*chores)

    async def measure(self) -> None:
        backlog = await self._log.backlog()
        CONSUMER_LAG.labels("accepted").set(backlog.accepted)
        CONSUMER_LAG.labels("dispatched").set(backlog.dispatched)
        CONSUMER_LAG.labels("attempted").set(backlog.attempted)

    async def sweep(self) -> None:
        older_than = datetime.now(UTC) - self._settings.expire
        # The records first: what leaves them meanwhile is in the queue.
        for queue in (self._log, *self._others()):
            unread = await queue.oldest_unconsumed()
            if unread is not None:
                older_than = min(older_than, unread - OUT_OF_ORDER)
            async for line in queue.open_lines():
                older_than = min(older_than, line.delivery.message.received)
        gone = await self._spool.sweep(older_than)
        if gone:
            log.info("spool swept", files=gone, older_than_days=self._settings.expire.total_seconds() / 86400)


async def _every(
    period: timedelta, name: str, chore: Callable[[], Awaitable[None]], stop: asyncio.Event, *, at_once: bool = True
) -> None:
    """Do a chore every `period`, until `stop`. A failure is a line in the log, and so is each other one after it."""
    due = at_once
    failure = ""
    while not stop.is_set():
        try:
            if due:
                await chore()
                failure = ""
        except (LogUnavailable, LogUnusable, SpoolUnavailable, OSError) as error:
            if str(error) != failure:
                log.warning("chore failed", chore=name, error=str(error))
            failure = str(error)
        due = True
        try:
            async with asyncio.timeout(period.total_seconds()):
                await stop.wait()
        except TimeoutError:
            continue
