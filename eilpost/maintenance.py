"""The chores of a process: consumed records purged, old content swept from the spool, the backlog measured.

It never touches mail that is not settled: what may go is decided by the log (`purge`), and by the spool's age limit,
which is longer than the queue lifetime. But nodes may have been down for longer than that, and clocks jump: nothing
goes that is younger than the oldest message still in the queue, or than the oldest record nobody has read yet. A
chore that fails is logged and tried again at its next turn.
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

logger = structlog.get_logger()

MEASURE_EVERY = timedelta(seconds=5)
PURGE_EVERY = timedelta(seconds=30)
SWEEP_EVERY = timedelta(hours=1)
ORDER_TOLERANCE = timedelta(hours=1)  # records stand about in the order of their messages; clocks differ


class QueueReader(Protocol):
    """What a sweep has to ask: whose content lies in the spool."""

    def pending_deliveries(self) -> AsyncIterator[Pending]: ...

    async def oldest_unconsumed(self) -> datetime | None: ...


class Maintenance:
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
        other_queues: Callable[[], Sequence[QueueReader]] = lambda: (),
    ) -> None:
        self._settings = settings
        self._log = log
        self._spool = spool
        self._sweeps = sweeps
        self._other_queues = other_queues

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        tasks = [
            asyncio.create_task(
                _run_periodically(MEASURE_EVERY, "measure", self.measure_backlog, stop), name="measure"
            ),
            asyncio.create_task(_run_periodically(PURGE_EVERY, "purge", self._log.purge, stop), name="purge"),
        ]
        if self._sweeps:
            sweeping = _run_periodically(SWEEP_EVERY, "sweep", self.sweep, stop, at_once=False)
            tasks.append(asyncio.create_task(sweeping, name="sweep"))
        ready()
        await asyncio.gather(*tasks)

    async def measure_backlog(self) -> None:
        backlog = await self._log.backlog()
        CONSUMER_LAG.labels("accepted").set(backlog.accepted)
        CONSUMER_LAG.labels("dispatched").set(backlog.dispatched)
        CONSUMER_LAG.labels("attempted").set(backlog.attempted)

    async def sweep(self) -> None:
        older_than = datetime.now(UTC) - self._settings.expire
        # The records first: what leaves them meanwhile is in the queue.
        for queue in (self._log, *self._other_queues()):
            oldest_unread = await queue.oldest_unconsumed()
            if oldest_unread is not None:
                older_than = min(older_than, oldest_unread - ORDER_TOLERANCE)
            async for pending in queue.pending_deliveries():
                older_than = min(older_than, pending.delivery.message.received)
        removed = await self._spool.sweep(older_than)
        if removed:
            logger.info("spool swept", files=removed, older_than_days=self._settings.expire.total_seconds() / 86400)


async def _run_periodically(
    period: timedelta, name: str, action: Callable[[], Awaitable[None]], stop: asyncio.Event, *, at_once: bool = True
) -> None:
    """Do a chore every `period`, until `stop`. A failure is a pending in the log, and so is each other one after it."""
    due = at_once
    failure = ""
    while not stop.is_set():
        try:
            if due:
                await action()
                failure = ""
        except (LogUnavailable, LogUnusable, SpoolUnavailable, OSError) as error:
            if str(error) != failure:
                logger.warning("chore failed", chore=name, error=str(error))
            failure = str(error)
        due = True
        try:
            async with asyncio.timeout(period.total_seconds()):
                await stop.wait()
        except TimeoutError:
            continue
