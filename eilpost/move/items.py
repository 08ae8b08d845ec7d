"""Items of a move (a queue entry with its record, or an unread message) and the copy of their content.

Content is copied between spools, and out of records that would be too large on the target.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field

from msgspec.structs import replace

from mail.message import Content, DeliveryId, Inline, QueueId, Spooled
from mail.record import Accepted, Attempted, Delivery, Dispatched, QueueEntry
from mail.service import ServiceError
from mail.spool import Spool, SpoolDamaged

_AT_A_TIME = 64  # concurrent copies between two spools: they share a flush
_LARGE_BYTES = 1 << 20
_LARGE_AT_A_TIME = 4
_COPIED_MAX = 50_000  # remembered copies: several deliveries share one content


@dataclass(frozen=True, slots=True)
class MoveItem:
    """`key` identifies the item on the target: the delivery id, or the queue id of an unread message."""

    key: DeliveryId | QueueId
    queue_id: QueueId
    size_bytes: int
    queue_entry: QueueEntry | None = None
    record: Accepted | Attempted | Dispatched | None = None

    @property
    def records(self) -> tuple[QueueEntry | Accepted | Attempted | Dispatched, ...]:
        return tuple(record for record in (self.queue_entry, self.record) if record is not None)


def item_of_accepted(accepted: Accepted) -> MoveItem:
    message = accepted.message
    return MoveItem(message.queue_id, message.queue_id, message.size_bytes, record=accepted)


def item_of_queue_entry(queue_entry: QueueEntry, record: Attempted | Dispatched | None = None) -> MoveItem:
    delivery: Delivery = queue_entry.delivery
    return MoveItem(delivery.id, delivery.message.queue_id, delivery.message.size_bytes, queue_entry, record)


@dataclass(slots=True)
class ContentCopier:
    """`source` is None when both logs use the same spool. With `allow_lost`, deliveries with lost content are moved and
    counted in `lost_count`; otherwise lost content stops the move.
    """

    source: Spool | None
    target: Spool
    inline_max_bytes: int
    allow_lost: bool = False
    lost_count: int = 0
    _copied: dict[str, Spooled] = field(default_factory=dict)
    _copy_limit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_A_TIME))
    _large_copy_limit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_LARGE_AT_A_TIME))

    async def copy(self, item: MoveItem) -> MoveItem:
        """The item with its content on the target. Raises ServiceError, SpoolUnavailable."""
        queue_entry, record = item.queue_entry, item.record
        if queue_entry is not None and queue_entry.content is not None:
            queue_entry = replace(queue_entry, content=await self._content(queue_entry.content, item))
        if isinstance(record, Accepted | Dispatched):
            record = replace(record, content=await self._content(record.content, item))
        elif isinstance(record, Attempted) and record.content is not None:
            record = replace(record, content=await self._spooled(record.content, item))
        if queue_entry is item.queue_entry and record is item.record:
            return item
        return dataclasses.replace(item, queue_entry=queue_entry, record=record)

    async def _content(self, content: Content, item: MoveItem) -> Content:
        if isinstance(content, Spooled):
            return await self._spooled(content, item)
        return content if len(content.data) <= self.inline_max_bytes else await self._put(content)

    async def _put(self, content: Inline) -> Spooled:
        async with self._copy_limit:
            return await self.target.put(content.data)

    async def _spooled(self, spooled: Spooled, item: MoveItem) -> Spooled:
        if self.source is None:
            return spooled
        copied_before = self._copied.get(spooled.name)
        if copied_before is not None:
            return copied_before
        async with self._large_copy_limit if spooled.size_bytes >= _LARGE_BYTES else self._copy_limit:
            try:
                copied = await self.target.put(await self.source.read(spooled))
            except SpoolDamaged as damage:
                if not self.allow_lost:
                    raise ServiceError(
                        f"{item.key}: {damage}; it was not moved. Restore it, or move it without content by --lost-too"
                    ) from None
                self.lost_count += 1
                copied = spooled
        if len(self._copied) >= _COPIED_MAX:
            self._copied.clear()
        self._copied[spooled.name] = copied
        return copied
