"""Delivery worker of one shard: reads `dispatched`, makes one attempt per entry and reports `attempted`.

An entry is finished only when its `Attempted` is durable; the shard's next owner repeats unfinished entries. If an
attempt cannot be reported because of a bug, the worker releases the shard (`ReportFailed`).
Next: `mailstore/maildir`, or the remote server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

import structlog

from delivery.attempt import AttemptResult, AttemptRunner
from delivery.capacity import Capacity, DeliveryItem
from delivery.courier import Progress
from mail.backoff import backoff
from mail.log import Damaged, DeliveryShard, Entry, LogUnavailable, ShardLost
from mail.record import Attempted, Dispatched
from mail.route import MAILBOX_SITE
from mail.tasks import cancel_tasks
from mail.telemetry.delivery import IN_FLIGHT
from mail.telemetry.log import CONSUMED_RECORDS, DAMAGED_RECORDS

logger = structlog.get_logger()

_READ_MAX = 250
_CONSUMED = CONSUMED_RECORDS.labels("dispatched")
_BACKOFF_SECONDS, _BACKOFF_SECONDS_MAX = 0.05, 5.0


class ReportFailed(Exception):
    """An attempt was made and could not be reported because of a bug: the shard must be acquired again."""


class Worker:
    """Worker of one shard of `dispatched`."""

    def __init__(
        self, *, shard: DeliveryShard, attempt_runner: AttemptRunner, capacity: Capacity, drain_seconds: float
    ) -> None:
        self._shard = shard
        self._attempt_runner = attempt_runner
        self._capacity = capacity
        capacity.scheduler.register(self)
        self._drain_seconds = drain_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._delivering: set[asyncio.Task[None]] = set()  # tasks that `_drain` cancels
        self._stopping = False
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Deliver until the shard is lost, then drain. Raises ReportFailed."""
        shard_lost = asyncio.create_task(self._shard.lost.wait())
        reading = asyncio.create_task(self._read())
        try:
            futures: set[asyncio.Future[Any]] = {reading, shard_lost, self._failure}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_tasks(shard_lost, reading)
            await self._drain()
        if self._failure.done():
            self._failure.result()
        if not reading.cancelled():
            reading.result()

    async def _read(self) -> None:
        """Read and queue entries until the shard is lost."""
        pauses = backoff(_BACKOFF_SECONDS, _BACKOFF_SECONDS_MAX)
        while True:
            limit = min(await self._capacity.read_limit(self), _READ_MAX)
            try:
                entries = await self._shard.read(limit)
            except ShardLost:
                self._stopping = True  # the next owner makes the attempts that have not started
                return
            except LogUnavailable as error:
                pause, event = next(pauses), "log unavailable, no new deliveries are read"
                logger.warning(event, shard=self._shard.number, retry_seconds=pause, error=str(error))
                await asyncio.sleep(pause)
                continue
            pauses = backoff(_BACKOFF_SECONDS, _BACKOFF_SECONDS_MAX)
            _CONSUMED.inc(len(entries))
            for entry in entries:
                if isinstance(entry.record, Damaged):
                    self._add_task(self._pass_on(entry))
                else:
                    self._capacity.add(self, entry)
            self._capacity.start()

    # Delivering

    def start_delivery(self, item: DeliveryItem) -> None:
        """Called by the capacity."""
        self._add_task(self._run_delivery(item))

    def _add_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, entry: Entry[Damaged]) -> None:
        """Pass a damaged dispatch to the router, which puts it into quarantine and dispatches its delivery again."""
        DAMAGED_RECORDS.labels("dispatched").inc()
        damaged = entry.record
        logger.error("damaged dispatch passed to the router", record=damaged.position, error=damaged.reason)
        try:
            await self._finish(entry, damaged, {"record": damaged.position})
        except ShardLost:
            self._stopping = True  # the next owner does it
        except Exception as error:  # boundary of the task: `run` raises it
            logger.exception("damaged dispatch not passed on: shard restarts", record=damaged.position)
            if not self._failure.done():
                self._failure.set_exception(ReportFailed(f"{damaged.position}: {error!r}"))

    async def _run_delivery(self, item: DeliveryItem) -> None:
        IN_FLIGHT.inc()
        try:
            if self._stopping:
                return  # the next owner makes the attempt
            await self._attempt_and_report(item)
        except ShardLost:
            self._stopping = True  # the next owner makes the attempt again
        except Exception as error:  # boundary of the task: `run` raises it
            logger.exception("attempt not reported: shard restarts, attempt is repeated", **self._ids_of(item))
            if not self._failure.done():
                self._failure.set_exception(ReportFailed(f"{item.entry.record.delivery.id}: {error!r}"))
        finally:
            IN_FLIGHT.dec()
            self._capacity.finish(item)

    async def _attempt_and_report(self, item: DeliveryItem) -> None:
        """Deliver and report. A bug is reported as a deferral, because an unfinished entry would block the committed
        offset.
        """
        record = item.entry.record
        result: AttemptResult | None = None
        on_spool_wait = partial(self._capacity.set_awaiting_spool, item)
        try:
            result = await self._deliver(item)
            await self._report(item, await self._attempt_runner.make_report(record, result, on_spool_wait))
        except ShardLost:
            raise
        except Exception:  # boundary of the attempt: reported as a deferral
            logger.exception("attempt failed, undelivered recipients deferred", **self._ids_of(item))
            await self._report(
                item, await self._attempt_runner.make_internal_error_report(record, result, on_spool_wait)
            )

    async def _deliver(self, item: DeliveryItem) -> AttemptResult:
        task = asyncio.current_task()
        assert task is not None
        if item.site != MAILBOX_SITE:  # an append to a mailbox is short and not cancelled
            self._delivering.add(task)
        try:
            dispatched = item.entry.record
            progress = Progress(partial(self._capacity.set_connecting, item), attempt=dispatched.number)
            return await self._attempt_runner.deliver(dispatched, progress)
        finally:
            self._delivering.discard(task)

    async def _report(self, item: DeliveryItem, attempted: Attempted) -> None:
        await self._finish(item.entry, attempted, self._ids_of(item))

    async def _finish(
        self,
        entry: Entry[Dispatched] | Entry[Damaged],
        attempted: Attempted | Damaged,
        ids: Mapping[str, str | int],
    ) -> None:
        """Retry until the log accepts the report."""
        for pause in backoff(_BACKOFF_SECONDS, _BACKOFF_SECONDS_MAX):
            try:
                await self._shard.finish(entry, attempted)
                return
            except LogUnavailable as error:
                event = "log unavailable, report of an attempt waits"
                logger.warning(event, **ids, retry_seconds=pause, error=str(error))
                await asyncio.sleep(pause)

    def _ids_of(self, item: DeliveryItem) -> dict[str, str | int]:
        """The fields of a log line that identify a delivery."""
        delivery = item.entry.record.delivery
        return {"queue_id": delivery.message.queue_id, "delivery_id": delivery.id, "shard": self._shard.number}

    async def _drain(self) -> None:
        """Cancel attempts before their final dot; wait up to `drain_seconds` for the others and their reports."""
        self._stopping = True
        self._capacity.unregister(self)
        for task in list(self._delivering):
            task.cancel()
        tasks = list(self._tasks)
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=self._drain_seconds)
            if unfinished:
                logger.warning(
                    "drain timed out", role="delivery", shard=self._shard.number, attempts_cancelled=len(unfinished)
                )
                for task in unfinished:
                    task.cancel()
                await asyncio.wait(unfinished, timeout=5.0)
