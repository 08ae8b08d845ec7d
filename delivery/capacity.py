"""What the workers of a process share: how much may be in flight, and the news that there is room again.

In charge of `delivery.in_flight` and `in_flight_bytes`, which bound the process however many shards it owns, and of
moving content that waits for a slow site into the spool when memory is full. A worker holds a `ShardCapacity` for its
shard;
what ends at one shard may let another's begin. Never takes, carries or reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

import structlog

from delivery.in_flight import InFlight, Queued
from mail.log import Entry
from mail.message import Inline
from mail.record import Dispatched
from mail.route import ToMailbox
from mail.settings import DeliverySettings
from mail.spool import Spool
from mail.telemetry.delivery import THROTTLE

logger = structlog.get_logger()

# What an entry may hold in memory at most: [spool] inline_max by default, or the largest that was seen.
_LARGEST_INLINE_BYTES = 256 * 1024
_SPOOLED_AT_ONCE = 100
_SPOOL_BACKOFF_SECONDS = 1.0  # before a spool that failed is asked again
_MIN_WAIT_SECONDS = 0.001
QUEUED_MAX = 5000  # of one shard
MAILBOX_SITE = ToMailbox("").site


class Capacity:
    """One for a process."""

    def __init__(self, settings: DeliverySettings, spool: Spool, *, queued_max: int = QUEUED_MAX) -> None:
        # A site gets as many as keep its connections busy; mailboxes have places of their own, half as many as all
        # sites together: however slow the world is, mail for our own people is not.
        half = max(1, settings.in_flight // 2)
        site_limit = max(1, min(half, 2 * settings.connections_per_site))
        self.in_flight: InFlight[ShardCapacity, Entry[Dispatched]] = InFlight(
            slots=settings.in_flight,
            memory_bytes=settings.in_flight_bytes,
            queued_per_owner=queued_max,
            site_limit=lambda _: site_limit,
            reserved={MAILBOX_SITE: half},
            is_trusted=lambda site: "://" in site,  # a relay; the sites of exchangers are whatever senders write to
        )
        self._spool = spool
        self._waiting_shards: set[ShardCapacity] = set()  # whose workers wait for capacity
        self._memory_task: asyncio.Task[None] | None = None
        self.largest_bytes = _LARGEST_INLINE_BYTES

    async def close(self) -> None:
        if self._memory_task is not None:
            self._memory_task.cancel()
            await asyncio.wait({self._memory_task})

    def register(self, on_start: Callable[[QueuedDelivery], None]) -> ShardCapacity:
        """The capacity of a shard; `on_start` is called with each of its entries when it may start."""
        shard = ShardCapacity(self, on_start)
        self.in_flight.register(shard)
        return shard

    def unregister(self, shard: ShardCapacity) -> None:
        self._waiting_shards.discard(shard)
        self.in_flight.unregister(shard)
        self.on_freed()

    def add(self, shard: ShardCapacity, entry: Entry[Dispatched], queued_at: float | None = None) -> None:
        dispatched = entry.record
        content = dispatched.content
        inline_bytes = len(content.data) if isinstance(content, Inline) else 0
        self.largest_bytes = max(self.largest_bytes, inline_bytes)
        active_bytes = inline_bytes or dispatched.delivery.message.size_bytes
        self.in_flight.add(
            shard,
            entry,
            dispatched.delivery.route.site,
            inline_bytes,
            active_bytes,
            monotonic() if queued_at is None else queued_at,
        )

    def start(self) -> None:
        """Let begin what may, whosever it is."""
        now = monotonic()
        for queued in self.in_flight.start():
            if now - queued.queued_at > _MIN_WAIT_SECONDS:
                THROTTLE.observe(now - queued.queued_at)
            queued.owner.on_start(queued)
        if self.in_flight.memory_limited and self._memory_task is None:
            self._memory_task = asyncio.create_task(self._free_memory(), name="make-room")

    async def _free_memory(self) -> None:
        """What waits for a slow site holds the memory into which another site's content would have to be read."""
        try:
            while self.in_flight.memory_limited and self.in_flight.has_queued_content:
                if not await self.spool_queued():
                    await asyncio.sleep(_SPOOL_BACKOFF_SECONDS)
        finally:
            self._memory_task = None

    def request_wakeup(self, shard: ShardCapacity) -> None:
        self._waiting_shards.add(shard)

    def on_freed(self) -> None:
        """Something ended: others may start, and more may be taken."""
        self.start()
        for shard in self._waiting_shards:
            shard.freed.set()
        self._waiting_shards.clear()

    async def spool_queued(self) -> bool:
        """Move content that waits for a slow site into the spool; False when there is none, or the spool fails."""
        deliveries = self.in_flight.take_content(_SPOOLED_AT_ONCE)
        if not deliveries:
            return False
        entries = [queued.item for queued in deliveries]
        contents = [entry.record.content for entry in entries]
        any_spooled = False
        try:
            results = await asyncio.gather(
                *(self._spool.put(content.data) for content in contents if isinstance(content, Inline)),
                return_exceptions=True,
            )
            for index, result in enumerate(results):
                if isinstance(result, BaseException):
                    logger.warning("spool unavailable", error=str(result))
                else:
                    any_spooled = True
                    entries[index] = replace(entries[index], record=replace(entries[index].record, content=result))
        finally:  # also when the one who asked is given up: they may be others'
            for queued, entry in zip(deliveries, entries, strict=True):
                if self.in_flight.is_registered(queued.owner):
                    self.add(queued.owner, entry, queued.queued_at)
            self.start()
        if any_spooled:
            self.on_freed()
        return any_spooled


class ShardCapacity:
    """A shard's place in the capacity, from the beginning of its worker to its drain."""

    def __init__(self, capacity: Capacity, on_start: Callable[[QueuedDelivery], None]) -> None:
        self._capacity = capacity
        self.on_start = on_start
        self.freed = asyncio.Event()  # since `request_wakeup`: there may be capacity

    def add(self, entry: Entry[Dispatched]) -> None:
        """Park what was taken; `start` lets it begin."""
        self._capacity.add(self, entry)

    def start(self) -> None:
        self._capacity.start()

    def set_awaiting_spool(self, delivery: QueuedDelivery, *, responsive: bool) -> None:
        """It is delivered, and waits for the spool before it can be reported: its place may be another's."""
        if self._capacity.in_flight.set_awaiting_spool(delivery, responsive=responsive):
            self._capacity.on_freed()

    def finish(self, delivery: QueuedDelivery, *, responsive: bool) -> None:
        """`responsive`: its site answered, and soon: it may have more."""
        self._capacity.in_flight.finish(delivery, responsive=responsive)
        self._capacity.on_freed()

    def read_limit(self) -> int:
        """How many the shard may take now."""
        return self._capacity.in_flight.read_limit(self, self._capacity.largest_bytes)

    def request_wakeup(self) -> None:
        """From now on, set `freed` when there may be capacity."""
        self.freed.clear()
        self._capacity.request_wakeup(self)

    async def free_memory(self) -> bool:
        """Try to; False when what is there has to be waited for."""
        # Only bytes can be moved out of the way; too many deliveries have to be waited for.
        return self._capacity.in_flight.has_queue_space(self) and await self._capacity.spool_queued()

    def unregister(self) -> None:
        """Let go of what has not begun: the shard's next owner takes it again."""
        self._capacity.unregister(self)


QueuedDelivery = Queued[ShardCapacity, Entry[Dispatched]]
