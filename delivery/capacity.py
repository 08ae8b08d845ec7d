"""Delivery capacity of a process, shared by its workers: slots (`delivery.max_in_flight_deliveries`) and a memory
budget (`delivery.max_in_flight_bytes`).

A worker has a `ShardCapacity` for its shard; a delivery that finishes in one shard may free a slot for another. When
the memory budget is used up, content of queued deliveries is moved to the spool.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from time import monotonic

import structlog
from msgspec.structs import replace

from delivery.in_flight import InFlight, Item
from mail.log import Entry
from mail.message import Inline
from mail.record import Dispatched
from mail.route import MAILBOX_SITE
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
        # Twice its connections keeps a site busy. Mailboxes have reserved slots, half as many as all sites together, so
        # that slow remote sites do not delay local mail.
        half = max(1, settings.max_in_flight_deliveries // 2)
        site_limit = max(1, min(half, 2 * settings.max_connections_per_site))
        self.in_flight: InFlight[ShardCapacity, Entry[Dispatched]] = InFlight(
            slots=settings.max_in_flight_deliveries,
            budget_bytes=settings.max_in_flight_bytes,
            queued_per_owner=queued_max,
            site_limit=lambda _: site_limit,
            reserved={MAILBOX_SITE: half},
            is_trusted=lambda site: "://" in site,  # a configured relay; the senders choose all other sites
        )
        self._spool = spool
        self.waiting_shards: set[ShardCapacity] = set()  # whose workers wait for capacity
        self._memory_task: asyncio.Task[None] | None = None
        self.largest_inline_bytes = _LARGEST_INLINE_BYTES

    async def close(self) -> None:
        if self._memory_task is not None:
            self._memory_task.cancel()
            await asyncio.wait({self._memory_task})

    def register(self, on_start: Callable[[DeliveryItem], None]) -> ShardCapacity:
        """The capacity of a shard; `on_start` is called with each queued delivery when it may start."""
        shard = ShardCapacity(self, on_start)
        self.in_flight.register(shard)
        return shard

    def unregister(self, shard: ShardCapacity) -> None:
        self.waiting_shards.discard(shard)
        self.in_flight.unregister(shard)
        self.on_freed()

    def add(self, shard: ShardCapacity, entry: Entry[Dispatched], queued_at: float | None = None) -> None:
        dispatched = entry.record
        content = dispatched.content
        inline_bytes = len(content.data) if isinstance(content, Inline) else 0
        self.largest_inline_bytes = max(self.largest_inline_bytes, inline_bytes)
        in_flight_bytes = inline_bytes or dispatched.delivery.message.size_bytes
        self.in_flight.add(
            shard,
            entry,
            dispatched.delivery.route.site,
            inline_bytes,
            in_flight_bytes,
            monotonic() if queued_at is None else queued_at,
        )

    def start(self) -> None:
        """Start queued deliveries of all shards, as far as the limits allow."""
        now = monotonic()
        for item in self.in_flight.start():
            if now - item.queued_at > _MIN_WAIT_SECONDS:
                SLOT_WAIT.observe(now - item.queued_at)
            item.owner.on_start(item)
        if self.in_flight.memory_limited and self._memory_task is None:
            self._memory_task = asyncio.create_task(self._free_memory(), name="free-memory")

    async def _free_memory(self) -> None:
        """Spool content queued for slow sites, so that content of other sites can be read into memory."""
        try:
            while self.in_flight.memory_limited and self.in_flight.has_queued_content:
                if not await self.spool_queued():
                    await asyncio.sleep(_SPOOL_BACKOFF_SECONDS)
        finally:
            self._memory_task = None

    def on_freed(self) -> None:
        """A delivery finished: start queued ones and wake workers that wait to read."""
        self.start()
        for shard in self.waiting_shards:
            shard.freed.set()
        self.waiting_shards.clear()

    async def spool_queued(self) -> bool:
        """Move content of queued deliveries to the spool; False if there is none or the spool fails."""
        items = self.in_flight.take_content(_SPOOL_BATCH_MAX)
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
                if self.in_flight.is_registered(item.owner):
                    self.add(item.owner, entry, item.queued_at)
            self.start()
        if len(errors) == len(items):
            return False
        self.on_freed()
        return True


class ShardCapacity:
    """One shard's view of the capacity, from the start of its worker to its drain."""

    def __init__(self, capacity: Capacity, on_start: Callable[[DeliveryItem], None]) -> None:
        self._capacity = capacity
        self.on_start = on_start
        self.freed = asyncio.Event()  # set when there may be capacity; cleared by `request_wakeup`

    def add(self, entry: Entry[Dispatched]) -> None:
        """Queue an entry; `start` starts it."""
        self._capacity.add(self, entry)

    def start(self) -> None:
        self._capacity.start()

    def set_awaiting_spool(self, item: DeliveryItem, *, responsive: bool) -> None:
        """The attempt ended and waits for the spool before it can be reported: free its slot."""
        if self._capacity.in_flight.set_awaiting_spool(item, responsive=responsive):
            self._capacity.on_freed()

    def finish(self, item: DeliveryItem, *, responsive: bool) -> None:
        """`responsive`: the site replied in time, so its limit grows."""
        self._capacity.in_flight.finish(item, responsive=responsive)
        self._capacity.on_freed()

    def read_limit(self) -> int:
        """How many entries the shard may read now."""
        return self._capacity.in_flight.read_limit(self, self._capacity.largest_inline_bytes)

    def request_wakeup(self) -> None:
        """Set `freed` at the next moment when there may be capacity."""
        self.freed.clear()
        self._capacity.waiting_shards.add(self)

    async def free_memory(self) -> bool:
        """Move queued content to the spool; False if the worker must wait for deliveries to finish."""
        return self._capacity.in_flight.has_queue_space(self) and await self._capacity.spool_queued()

    def unregister(self) -> None:
        """Drop deliveries that have not started: the shard's next owner reads them again."""
        self._capacity.unregister(self)


DeliveryItem = Item[ShardCapacity, Entry[Dispatched]]
