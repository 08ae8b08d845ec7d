"""Periodic maintenance of a process: purge consumed records, sweep the spool, measure the backlog.

The spool's age limit is longer than the queue lifetime. Because processes can be down for longer and clocks can jump,
a sweep also keeps content newer than the oldest queued message and the oldest unconsumed record. A failed task is
logged and repeated in the next period.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from mail.log import LogUnavailable, LogUnusable
from mail.log.queue_summary import QueueSummary
from mail.spool import SpoolUnavailable
from mail.tasks import background, periodically
from mail.telemetry.log import CONSUMER_LAG

if TYPE_CHECKING:
    from mail.log import Log
    from mail.log.kafka.history import KafkaHistory
    from mail.settings import SpoolSettings
    from mail.spool import Spool

logger = structlog.get_logger()

MEASURE_EVERY = timedelta(seconds=5)
PURGE_EVERY = timedelta(seconds=30)
SWEEP_EVERY = timedelta(hours=1)
_FAILED = "maintenance task failed"
ORDER_TOLERANCE = timedelta(hours=1)  # records are only roughly in the order of their messages; clocks differ


@dataclass(eq=False, kw_only=True)
class Maintenance:
    """`sweeps`: only one role of a cluster sweeps the spool. `other_queues` are those of dedicated tenants, which share
    the spool.
    """

    name = "maintenance"

    settings: SpoolSettings
    log: Log
    spool: Spool
    sweeps: bool = True
    other_queues: Callable[[], Sequence[KafkaHistory]] = lambda: ()

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        work = [
            _every(MEASURE_EVERY, "measure", self.measure_backlog),
            _every(PURGE_EVERY, "purge", self.log.purge),
        ]
        if self.sweeps:
            work.append(_every(SWEEP_EVERY, "sweep", self.sweep, at_once=False))
        async with background(*work):
            ready()
            await stop.wait()

    async def measure_backlog(self) -> None:
        backlog = await self.log.backlog()
        CONSUMER_LAG.labels("accepted").set(backlog.accepted)
        CONSUMER_LAG.labels("dispatched").set(backlog.dispatched)
        CONSUMER_LAG.labels("attempted").set(backlog.attempted)

    async def sweep(self) -> None:
        now = datetime.now(UTC)
        older_than = now - self.settings.retention
        # The unconsumed records before the queue: a record consumed in between is in the queue.
        queues: Sequence[Log | KafkaHistory] = (self.log, *self.other_queues())
        for queue in queues:
            oldest_unread = await queue.oldest_unconsumed()
            if oldest_unread is not None:
                older_than = min(older_than, oldest_unread - ORDER_TOLERANCE)
            summary = QueueSummary(limit=1)
            await queue.summarize_queue(summary)
            if summary.damaged:
                return  # the content of a damaged entry is unknown until the router has replaced it
            older_than = min(older_than, summary.total.oldest or older_than)
        removed = await self.spool.sweep(older_than)
        if removed:
            logger.info("spool swept", files=removed, older_than_days=round((now - older_than) / timedelta(days=1), 2))


async def _every(period: timedelta, name: str, action: Callable[[], Awaitable[None]], *, at_once: bool = True) -> None:
    """Run `action` every `period` until cancelled. A failure is logged once until its text changes or it succeeds."""
    failure = ""

    async def act() -> None:
        nonlocal failure
        try:
            await action()
            failure = ""
        except (LogUnavailable, LogUnusable, SpoolUnavailable, OSError) as error:
            if str(error) != failure:
                retry_seconds = period.total_seconds()
                logger.warning(_FAILED, task=name, retry_seconds=retry_seconds, error=str(error))
            failure = str(error)

    await periodically(period.total_seconds(), act, _FAILED, at_once=at_once, task=name)
