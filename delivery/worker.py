"""The delivery worker: takes what was dispatched, has it tried once, and reports.

In charge of one shard while it is owned: how much is taken, the order in which things start and that each is reported
exactly when its `Attempted` is durable. Never decides about retries. It promises that no entry is lost whatever a
courier, the spool or the log does: an entry that was not finished is taken again by the shard's next owner.
Next: `mailstore/maildir.py`, or the remote server.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from delivery.attempt import Attempts
from delivery.inflight import InFlight, Parked
from mail.log import DeliveryShard, Entry, LogUnavailable, ShardLost
from mail.message import Inline
from mail.record import Dispatched
from mail.route import ToMailbox
from mail.settings import DeliverySettings
from mail.spool import Spool
from mail.telemetry import IN_FLIGHT

log = structlog.get_logger()

# What an entry may hold in memory at most: [spool] inline_max by default, or the largest that was seen.
_LARGEST_INLINE_BYTES = 256 * 1024
_PARKED_MAX = 5000
_TAKE_MAX = 250
_BACKOFF_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
_MAILBOX_SITE = ToMailbox("").site

_Job = Parked[Entry[Dispatched]]


class Worker:
    """Tends one shard of `dispatched`."""

    def __init__(
        self,
        *,
        shard: DeliveryShard,
        attempts: Attempts,
        spool: Spool,
        settings: DeliverySettings,
        drain_seconds: float,
    ) -> None:
        self._shard = shard
        self._attempts = attempts
        self._spool = spool
        self._drain_seconds = drain_seconds
        # A site gets as many as keep its connections busy, mailboxes half of all: nobody takes everything.
        half = max(1, settings.in_flight // 2)
        share = max(1, min(half, 2 * settings.connections_per_site))
        self._inflight: InFlight[Entry[Dispatched]] = InFlight(
            count=settings.in_flight,
            size_bytes=settings.in_flight_bytes,
            parked=_PARKED_MAX,
            share_of=lambda site: half if site == _MAILBOX_SITE else share,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._carrying: set[asyncio.Task[None]] = set()  # of them, those that may be given up
        self._room = asyncio.Event()
        self._lost = False
        self._largest_bytes = _LARGEST_INLINE_BYTES

    async def tend(self) -> None:
        """Until the shard is lost; then what is past its final dot is waited for, and nothing else."""
        losing = asyncio.create_task(self._shard.lost.wait())
        losing.add_done_callback(lambda _: self._room.set())
        try:
            tries = 0
            while True:
                limit = await self._wait_for_room()
                try:
                    entries = await self._shard.take(limit)
                except ShardLost:
                    break
                except LogUnavailable as error:
                    log.warning("log unavailable", error=str(error))
                    await asyncio.sleep(_BACKOFF_SECONDS[min(tries, len(_BACKOFF_SECONDS) - 1)])
                    tries += 1
                    continue
                tries = 0
                for entry in entries:
                    self._add(entry)
                self._start()
        finally:
            losing.cancel()
            await self._drain()

    # Taking

    def _add(self, entry: Entry[Dispatched]) -> None:
        dispatched = entry.record
        content = dispatched.content
        held = len(content.data) if isinstance(content, Inline) else 0
        self._largest_bytes = max(self._largest_bytes, held)
        size = held or dispatched.delivery.message.size_bytes
        self._inflight.add(entry, dispatched.delivery.route.site, held, size)

    async def _wait_for_room(self) -> int:
        """How many to take now; waits while the bounds are reached."""
        while True:
            room = self._inflight.room(self._largest_bytes)
            if room:
                return min(room, _TAKE_MAX)
            if self._lost or self._shard.lost.is_set():
                return 1  # take() will say so
            self._room.clear()  # before the spool is asked: what ends meanwhile counts
            # Only bytes can be moved out of the way; too many deliveries have to be waited for.
            if self._inflight.parked >= _PARKED_MAX or not await self._unload():
                await self._room.wait()

    async def _unload(self) -> bool:
        """Memory is full: move content that waits for a slow site into the spool, so that others go on."""
        jobs = self._inflight.unload(100)
        if not jobs:
            return False
        contents = [job.item.record.content for job in jobs]
        kept = await asyncio.gather(
            *(self._spool.keep(content.data) for content in contents if isinstance(content, Inline)),
            return_exceptions=True,
        )
        ok = False
        for job, result in zip(jobs, kept, strict=True):
            entry = job.item
            if isinstance(result, BaseException):
                if not isinstance(result, Exception):
                    raise result
                log.warning("spool unavailable", error=str(result))
                self._add(entry)
                continue
            ok = True
            self._add(replace(entry, record=replace(entry.record, content=result)))
        self._start()
        return ok

    # Working

    def _start(self) -> None:
        for job in self._inflight.start():
            task = asyncio.create_task(self._work(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, job: _Job) -> None:
        entry = job.item
        task = asyncio.current_task()
        assert task is not None
        IN_FLIGHT.inc()
        try:
            if self._lost:
                return  # before it began: the next owner makes the attempt
            if job.site != _MAILBOX_SITE:  # keeping in a mailbox is soon over, and never worth giving up
                self._carrying.add(task)
            try:
                carriage = await self._attempts.carry(entry.record)
            finally:
                self._carrying.discard(task)
            attempted = await self._attempts.record(entry.record, carriage)
            tries = 0
            while True:
                try:
                    await self._shard.finish(entry, attempted)
                    break
                except LogUnavailable as error:
                    log.warning("log unavailable", queue_id=entry.record.delivery.message.queue_id, error=str(error))
                    await asyncio.sleep(_BACKOFF_SECONDS[min(tries, len(_BACKOFF_SECONDS) - 1)])
                    tries += 1
        except ShardLost:
            self._lost = True  # the next owner makes the attempt again
        except Exception:
            # Not finished, so not lost: it is taken again after a restart. A bug of ours, and a loud one.
            log.exception("attempt not reported", delivery_id=entry.record.delivery.id)
        finally:
            IN_FLIGHT.dec()
            self._inflight.done(job)
            self._room.set()
            if not self._lost:
                self._start()

    async def _drain(self) -> None:
        """Give up what is before its final dot; wait, for a while, for what is past it and for what is reported."""
        self._lost = True
        self._inflight.clear()
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
