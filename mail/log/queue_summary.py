"""Summary of the queue: totals by site and state, and the oldest deliveries, from the frames of its entries. Pure.

Of an entry that is not among the oldest, only the fields of the totals are decoded: a quarter of the cost of decoding
it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from msgspec import Raw
from msgspec.json import Decoder
from msgspec.structs import replace

from mail.frame_struct import FrameStruct, Instant, Size
from mail.log.codec import UNREADABLE, VERSION, FrameError, UnknownVersion, decode, header_error, open_frame
from mail.message import DeliveryId
from mail.record import ACTIVE, Active, QueueEntry, state_name
from mail.route import Route


class _Envelope(FrameStruct, frozen=True):
    reverse_path: Raw
    recipients: tuple[Raw, ...]


class _Message(FrameStruct, frozen=True):
    queue_id: Raw
    tenant: Raw
    received: Instant
    envelope: _Envelope
    size_bytes: Size


class _Delivery(FrameStruct, frozen=True):
    id: DeliveryId
    message: _Message
    route: Route


class _Waiting(FrameStruct, frozen=True, tag="waiting"):
    due: Raw
    cause: str


class _Totalled(FrameStruct, frozen=True, tag="queue_entry"):
    """The first fields of `QueueEntry`, as far as the totals need them."""

    delivery: _Delivery
    state: Active | _Waiting

    @property
    def state_name(self) -> str:
        return self.state.cause if isinstance(self.state, _Waiting) else ACTIVE


_DECODER = Decoder(_Totalled)


@dataclass(slots=True)
class Totals:
    deliveries: int = 0
    recipients: int = 0
    bytes: int = 0
    oldest: datetime | None = None

    def add(self, other: Totals) -> None:
        self.deliveries += other.deliveries
        self.recipients += other.recipients
        self.bytes += other.bytes
        if self.oldest is None or (other.oldest is not None and other.oldest < self.oldest):
            self.oldest = other.oldest


class Position(NamedTuple):
    """Of a delivery in the list, which is in this order."""

    received: datetime
    delivery_id: DeliveryId


@dataclass(slots=True)
class _Listed:
    position: Position
    entry: QueueEntry

    def __lt__(self, other: _Listed) -> bool:
        return self.position > other.position  # the last of the list is the first of the heap


class QueueSummary:
    """Totals of all queue entries that match, and the `limit` oldest of them (0: all), without their content."""

    def __init__(self, *, site: str | None = None, after: Position | None = None, limit: int = 0) -> None:
        """`site`: only sites whose name contains it. `after`: the list starts after it."""
        self.site = site
        self.not_matching = 0
        self.damaged = 0  # entries that cannot be read, in no total
        self.before = 0  # matching entries up to `after`
        self.totals_by_site: dict[tuple[str, str], Totals] = {}  # by site and state
        self._after = after
        self._limit = limit
        self._heap: list[_Listed] = []

    @property
    def total(self) -> Totals:
        total = Totals()
        for totals in self.totals_by_site.values():
            total.add(totals)
        return total

    @property
    def oldest(self) -> list[QueueEntry]:
        return [listed.entry for listed in sorted(self._heap, reverse=True)]

    def top(self, limit: int) -> list[tuple[str, str, Totals]]:
        """The sites and states with the most recipients; a `limit` of 0 means all."""
        ranked = sorted(self.totals_by_site.items(), key=lambda item: -item[1].recipients)
        return [(site, state, totals) for (site, state), totals in ranked[: limit or None]]

    def add(self, frame: bytes) -> None:
        """Add the frame of a queue entry; a damaged one is only counted. Raises UnknownVersion."""
        try:
            self._add(frame)
        except UnknownVersion:
            raise
        except FrameError:
            self.damaged += 1

    def _add(self, frame: bytes) -> None:
        entry = _decode_totalled(frame)
        message, route = entry.delivery.message, entry.delivery.route
        name = route.site_name
        if self.site is not None and self.site not in name and self.site not in route.site:
            self.not_matching += 1
            return
        state = state_name(entry.state) if isinstance(entry, QueueEntry) else entry.state_name
        received, key = message.received, (name, state)
        totals = self.totals_by_site.get(key)
        if totals is None:
            totals = self.totals_by_site[key] = Totals(oldest=received)
        elif totals.oldest is None or received < totals.oldest:
            totals.oldest = received
        totals.deliveries += 1
        totals.recipients += len(message.envelope.recipients)
        totals.bytes += message.size_bytes
        position = Position(received, entry.delivery.id)
        if self._after is not None and position <= self._after:
            self.before += 1
            return
        is_full = self._limit and len(self._heap) >= self._limit
        if is_full and position > self._heap[0].position:
            return
        listed = _Listed(position, replace(decode(frame, QueueEntry), content=None))
        if is_full:
            heapq.heapreplace(self._heap, listed)
        else:
            heapq.heappush(self._heap, listed)


def _decode_totalled(frame: bytes) -> _Totalled | QueueEntry:
    version, header, _ = open_frame(frame)
    if version != VERSION:
        return decode(frame, QueueEntry)
    try:
        return _DECODER.decode(header)
    except UNREADABLE as reason:
        raise header_error(reason) from reason
