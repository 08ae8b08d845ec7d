"""Delivery capacity of a process, shared by its workers: the asyncio shell of `delivery/scheduler.py`.

A delivery that finishes in one shard may free a slot for another. When the memory budget is used up, content of queued
deliveries is moved to the spool.
"""

from __future__ import annotations

import asyncio
import dataclasses
from time import monotonic
from typing import Protocol

import structlog
from msgspec.structs import replace

from delivery.scheduler import Item, Scheduler
from delivery.site_window import SiteWindows
from mail.log import Entry
from mail.message import Inline
from mail.record import Dispatched
from mail.settings_roles import DeliverySettings
from mail.spool import Spool
from mail.telemetry.delivery import SLOT_WAIT

logger = structlog.get_logger()

_LARGEST_INLINE_BYTES = 256 * 1024  # the default of spool.max_inline_size; raised when a larger entry is read
_SPOOL_BATCH_MAX = 100
_SPOOL_BACKOFF_SECONDS = 1.0
_MIN_WAIT_SECONDS = 0.001  # shorter waits are not observed
QUEUED_MAX = 5000  # per shard


class Capacity:
    """Delivery capacity. One per process."""

    def __init__(self, settings: DeliverySettings, spool: Spool, *, queued_max: int = QUEUED_MAX) -> None:
        self.windows = SiteWindows(settings.max_connections_per_site, settings.reconnect_backoff.total_seconds())
        slots = settings.max_in_flight_deliveries
        self.scheduler: Scheduler[Starter, Entry[Dispatched]] = Scheduler(
            self.windows,
            slots=slots,
            mailbox_slots=max(1, slots // 2),
            memory_bytes=settings.max_in_flight_bytes,
            queued_per_owner=queued_max,
        )
        self._spool = spool
        self.freed: asyncio.Event | None = None  # that workers wait for to read more
        self._memory_task: asyncio.Task[None] | None = None
        self._largest_inline_bytes = _LARGEST_INLINE_BYTES

    async def close(self) -> None:
        if self._memory_task is not None:
            self._memory_task.cancel()
            await asyncio.wait({self._memory_task})

    def unregister(self, worker: Starter) -> None:
        """Drop deliveries that have not started: the shard's next owner reads them again."""
        self.scheduler.unregister(worker)
        self._on_freed()

    async def read_limit(self, worker: Starter) -> int:
        """How many entries the worker may read now; waits while the limits are reached."""
        while not (limit := self.scheduler.read_limit(worker, self._largest_inline_bytes)):
            freed = self.freed = self.freed or asyncio.Event()  # before `_spool_queued`, so that it is not missed
            if not (self.scheduler.has_queue_space(worker) and await self._spool_queued()):
                await freed.wait()
        return limit

    def add(self, worker: Starter, entry: Entry[Dispatched], queued_at: float = 0.0) -> None:
        """Queue an entry; `start` starts it."""
        dispatched = entry.record
        content = dispatched.content
        inline_bytes = len(content.data) if isinstance(content, Inline) else 0
        self._largest_inline_bytes = max(self._largest_inline_bytes, inline_bytes)
        in_flight_bytes = inline_bytes or dispatched.delivery.message.size_bytes
        site = dispatched.delivery.route.site
        self.scheduler.add(Item(worker, entry, site, inline_bytes, in_flight_bytes, queued_at or monotonic()))

    def start(self) -> None:
        """Start queued deliveries of all shards, as far as the limits allow."""
        now = monotonic()
        for item in self.scheduler.start():
            if now - item.queued_at > _MIN_WAIT_SECONDS:
                SLOT_WAIT.observe(now - item.queued_at)
            item.owner.start_delivery(item)
        if self.scheduler.memory_limited and self._memory_task is None:
            self._memory_task = asyncio.create_task(self._free_memory(), name="free-memory")

    def set_connecting(self, item: DeliveryItem, connecting: bool) -> None:
        """A delivery begins or ends to wait for a connection to open; meanwhile it needs no slot."""
        if self.scheduler.set_connecting(item, connecting=connecting):
            self._on_freed()

    def set_awaiting_spool(self, item: DeliveryItem) -> None:
        """The attempt ended and waits for the spool before it can be reported: free its slot."""
        if self.scheduler.set_awaiting_spool(item):
            self._on_freed()

    def finish(self, item: DeliveryItem) -> None:
        self.scheduler.finish(item)
        self._on_freed()

    def _on_freed(self) -> None:
        """Start queued deliveries and wake workers that wait to read."""
        self.start()
        if self.freed is not None:
            self.freed.set()
            self.freed = None

    async def _free_memory(self) -> None:
        """Spool content queued for slow sites, so that content of other sites can be read into memory."""
        try:
            while self.scheduler.memory_limited:
                if not await self._spool_queued():
                    await asyncio.sleep(_SPOOL_BACKOFF_SECONDS)
        finally:
            self._memory_task = None

    async def _spool_queued(self) -> bool:
        """Move content of queued deliveries to the spool; False if there is none or the spool fails."""
        items = self.scheduler.take_content(_SPOOL_BATCH_MAX)
        if not items:
            return False
        entries = [item.entry for item in items]
        contents = [entry.record.content for entry in entries]
        errors: list[BaseException] = []
        try:
            results = await asyncio.gather(
                *(self._spool.put(content.data) for content in contents if isinstance(content, Inline)),
                return_exceptions=True,
            )
            for index, result in enumerate(results):
                if isinstance(result, BaseException):
                    errors.append(result)
                else:
                    record = replace(entries[index].record, content=result)
                    entries[index] = dataclasses.replace(entries[index], record=record)
            if errors:
                event = "spool unavailable, content of queued deliveries stays in memory"
                shards = sorted({entry.shard for entry in entries})
                logger.warning(event, shards=shards, deliveries=len(errors), error=str(errors[0]))
        finally:  # also on cancellation: the deliveries may belong to other shards
            for item, entry in zip(items, entries, strict=True):
                if self.scheduler.is_registered(item.owner):
                    self.add(item.owner, entry, item.queued_at)
            self.start()
        if len(errors) == len(items):
            return False
        self._on_freed()
        return True


class Starter(Protocol):
    """A worker, the owner of the deliveries that it has read."""

    def start_delivery(self, item: DeliveryItem) -> None: ...


DeliveryItem = Item[Starter, Entry[Dispatched]]
