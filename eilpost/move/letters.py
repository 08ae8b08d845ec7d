"""What moves together: a queue line and what belongs to it, or an unread message; with content the target can read.

In charge of content: from one spool to the other, and out of a record that would be too large on the target.
Never reads or writes a log. Next: `eilpost/move/ends.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from mail.message import Content, DeliveryId, Inline, QueueId, Spooled
from mail.record import Accepted, Attempted, Delivery, Dispatched, Pending
from mail.service import ServiceError
from mail.spool import Spool, SpoolDamaged

_AT_A_TIME = 64  # contents under way between two spools: they share a flush
_LARGE_BYTES = 1 << 20
_LARGE_AT_A_TIME = 4
_REMEMBERED = 50_000  # contents that several deliveries may share


@dataclass(frozen=True, slots=True)
class Letter:
    """`key` is by what it is known on the target: the line's delivery id, or the queue id of an unread message."""

    key: DeliveryId | QueueId
    queue_id: QueueId
    size_bytes: int
    line: Pending | None = None
    rest: Accepted | Attempted | Dispatched | None = None

    @property
    def records(self) -> tuple[Pending | Accepted | Attempted | Dispatched, ...]:
        return tuple(record for record in (self.line, self.rest) if record is not None)


def unread(accepted: Accepted) -> Letter:
    message = accepted.message
    return Letter(message.queue_id, message.queue_id, message.size_bytes, rest=accepted)


def opened(line: Pending, rest: Attempted | Dispatched | None = None) -> Letter:
    delivery: Delivery = line.delivery
    return Letter(delivery.id, delivery.message.queue_id, delivery.message.size_bytes, line, rest)


@dataclass(slots=True)
class Carrier:
    """`source` is None when both sides have the same spool. With `lost_too`, what has lost its content is moved all
    the same, and `lost` counts it; else it stops the move.
    """

    source: Spool | None
    target: Spool
    inline_max_bytes: int
    lost_too: bool = False
    lost: int = 0
    _kept: dict[str, Spooled] = field(default_factory=dict)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_A_TIME))
    _large: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_LARGE_AT_A_TIME))

    async def carry(self, letter: Letter) -> Letter:
        """The letter with its content on the target's side. Raises ServiceError, SpoolUnavailable."""
        line, rest = letter.line, letter.rest
        if line is not None and line.content is not None:
            line = replace(line, content=await self._content(line.content, letter))
        if isinstance(rest, Accepted | Dispatched):
            rest = replace(rest, content=await self._content(rest.content, letter))
        elif isinstance(rest, Attempted) and rest.content is not None:
            rest = replace(rest, content=await self._spooled(rest.content, letter))
        if line is letter.line and rest is letter.rest:
            return letter
        return replace(letter, line=line, rest=rest)

    async def _content(self, content: Content, letter: Letter) -> Content:
        if isinstance(content, Spooled):
            return await self._spooled(content, letter)
        return content if len(content.data) <= self.inline_max_bytes else await self._keep(content)

    async def _keep(self, content: Inline) -> Spooled:
        async with self._places:
            return await self.target.keep(content.data)

    async def _spooled(self, spooled: Spooled, letter: Letter) -> Spooled:
        if self.source is None:
            return spooled
        known = self._kept.get(spooled.name)
        if known is not None:
            return known
        async with self._large if spooled.size_bytes >= _LARGE_BYTES else self._places:
            try:
                kept = await self.target.keep(await self.source.read(spooled))
            except SpoolDamaged as damage:
                if not self.lost_too:
                    raise ServiceError(
                        f"{letter.key}: {damage}; nothing of it was moved. Mend it, or move it as it is with --lost-too"
                    ) from None
                self.lost += 1
                kept = spooled
        if len(self._kept) >= _REMEMBERED:
            self._kept.clear()
        self._kept[spooled.name] = kept
        return kept
