"""The delivery worker: takes what was dispatched, has it tried once, and reports.

In charge of one shard while it is owned: the order in which things start and that each is reported exactly when its
`Attempted` is durable; how much is taken, all workers of a process share (`delivery/capacity.py`). Never decides about
retries. It promises that no entry is lost whatever a courier, the spool or the log does: an entry that was not
finished is taken again by the shard's next owner, and where finishing it is beyond us, the shard is given up.
Next: `mailstore/maildir.py`, or the remote server.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from delivery.attempt import Attempts, Carriage
from delivery.capacity import MAILBOX_SITE, Capacity, Job
from mail.log import DeliveryShard, LogUnavailable, ShardLost
from mail.record import Attempted
from mail.telemetry.delivery import IN_FLIGHT
from mail.telemetry.log import CONSUMED_RECORDS

log = structlog.get_logger()

_TAKE_MAX = 250
_CONSUMED = CONSUMED_RECORDS.labels("dispatched")
_BACKOFF_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)


class Unreportable(Exception):
    """An attempt was made and could not be reported, by a bug of ours: the shard has to be taken anew."""


class Worker:
    """Tends one shard of `dispatched`."""

    def __init__(self, *, shard: DeliveryShard, attempts: Attempts, capacity: Capacity, drain_seconds: float) -> None:
        self._shard = shard
        self._attempts = attempts
        self._seat = capacity.join(self._begin)
        self._drain_seconds = drain_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._carrying: set[asyncio.Task[None]] = set()  # of them, those that may be given up
        self._lost = False
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def tend(self) -> None:
        """Until the shard is lost; then what is past its final dot is waited for, and nothing else. Raises
        Unreportable.
        """
        losing = asyncio.create_task(self._shard.lost.wait())
        taking = asyncio.create_task(self._take())
        try:
            ends: set[asyncio.Future[Any]] = {taking, losing, self._broken}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            losing.cancel()
            taking.cancel()
            await asyncio.wait({taking})
            await self._drain()
        if self._broken.done():
            self._broken.result()
        if not taking.cancelled():
            taking.result()

    async def _take(self) -> None:
        """Until the shard is lost."""
        tries = 0
        while True:
            limit = await self._wait_for_room()
            try:
                entries = await self._shard.take(limit)
            except ShardLost:
                self._lost = True  # what has not begun is its next owner's
                return
            except LogUnavailable as error:
                log.warning("log unavailable", error=str(error))
                await asyncio.sleep(_BACKOFF_SECONDS[min(tries, len(_BACKOFF_SECONDS) - 1)])
                tries += 1
                continue
            tries = 0
            _CONSUMED.inc(len(entries))
            for entry in entries:
                self._seat.add(entry)
            self._seat.start()

    async def _wait_for_room(self) -> int:
        """How many to take now; waits while the bounds are reached."""
        seat = self._seat
        while True:
            room = seat.room()
            if room:
                return min(room, _TAKE_MAX)
            seat.watch()  # before the spool is asked: what ends meanwhile counts
            if not await seat.make_room():
                await seat.news.wait()

    # Working

    def _begin(self, job: Job) -> None:
        task = asyncio.create_task(self._work(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, job: Job) -> None:
        IN_FLIGHT.inc()
        answered = False
        try:
            if self._lost:
                return  # before it began: the next owner makes the attempt
            answered = await self._attempt(job)
        except ShardLost:
            self._lost = True  # the next owner makes the attempt again
        except Exception as error:
            log.exception("attempt not reported, the shard is given up", delivery_id=job.item.record.delivery.id)
            if not self._broken.done():
                self._broken.set_exception(Unreportable(f"{job.item.record.delivery.id}: {error!r}"))
        finally:
            IN_FLIGHT.dec()
            self._seat.done(job, answered=answered)

    async def _attempt(self, job: Job) -> bool:
        """Carry and report; whether the site answered, and soon. A bug of ours is reported as a deferral: an entry
        that nobody finishes is one behind which a log could never purge.
        """
        record = job.item.record
        carriage: Carriage | None = None

        def waits() -> None:
            self._seat.linger(job, answered=carriage is not None and carriage.answered)

        try:
            carriage = await self._carry(job)
            await self._finish(job, await self._attempts.record(record, carriage, waits))
        except ShardLost:
            raise
        except Exception:
            log.exception("attempt not reported as it was", delivery_id=record.delivery.id)
            await self._finish(job, await self._attempts.report_bug(record, carriage, waits))
        return carriage is not None and carriage.answered

    async def _carry(self, job: Job) -> Carriage:
        task = asyncio.current_task()
        assert task is not None
        if job.site != MAILBOX_SITE:  # keeping in a mailbox is soon over, and never worth giving up
            self._carrying.add(task)
        try:
            return await self._attempts.carry(job.item.record)
        finally:
            self._carrying.discard(task)

    async def _finish(self, job: Job, attempted: Attempted) -> None:
        """Until the log has it."""
        tries = 0
        while True:
            try:
                await self._shard.finish(job.item, attempted)
                return
            except LogUnavailable as error:
                log.warning("log unavailable", queue_id=job.item.record.delivery.message.queue_id, error=str(error))
                await asyncio.sleep(_BACKOFF_SECONDS[min(tries, len(_BACKOFF_SECONDS) - 1)])
                tries += 1

    async def _drain(self) -> None:
        """Give up what is before its final dot; wait, for a while, for what is past it and for what is reported."""
        self._lost = True
        self._seat.leave()
        for task in list(self._carrying):
            task.cancel()
        tasks = list(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._drain_seconds)
            if late:
                log.warning("drain over", given_up=len(late))
                for task in late:
                    task.cancel()
                await asyncio.wait(late, timeout=5.0)
