"""Shards of the embedded log: reads, router commits and delivery finishes.

Entries that become durable while their shard is owned are passed to the owner from memory, up to a size limit; all
others are read from the database. Each entry is read once, in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from mail.log import Entry, FoundDispatch, Input, LogUnavailable, LogUnusable, ShardLost
from mail.log.codec import FrameError, UnknownVersion, decode, encode
from mail.log.damaged import Damaged, decode_queue_entry, find_id, report_shards
from mail.log.embedded.commit import Change, compacted_key, inline_content, offset_of, shard_base_id, topic_and_shard_of
from mail.log.embedded.store import EntryRow, Store, encode_text, newer_version
from mail.log.embedded.writer import Writer
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, EVENTS, QUEUE, Topic, shard_of_message
from mail.message import DeliveryId, QueueId
from mail.record import Accepted, Attempted, Dispatched, Event, QueueEntry, Record
from mail.tasks import is_set_within
from mail.telemetry.log import PRODUCE_DURATION

R = TypeVar("R", Accepted, Attempted, Dispatched)

_REPLAY_BATCH = 500
_READ_AHEAD = 200  # least number of entries per database read
_ENCODE_BATCH = 500  # records encoded before other tasks run


def decode_row(row: EntryRow, topic: Topic, location: str) -> Any:
    """The record of a row, or Damaged. Raises LogUnusable for a newer version."""
    _, shard = topic_and_shard_of(row.id)
    offset = offset_of(row.id)
    try:
        return row.record(topic.record)
    except UnknownVersion as reason:
        raise newer_version(location, f"{topic.name}, shard {shard}, offset {offset}", reason) from None
    except FrameError as reason:
        content = row.content or b""
        key, is_intact = find_id(row.frame), row.is_content_intact
        return Damaged(topic.name, shard, offset, key, row.frame, str(reason), content, is_intact)


class EntryReader(Generic[R]):
    """The read position in one shard of one topic, and a buffer of the next entries.

    `wakeup` is set when entries may have arrived.
    """

    def __init__(self, writer: Writer, topic: Topic, shard: int, wakeup: asyncio.Event, bytes_max: int) -> None:
        self.topic = topic
        self.shard = shard
        self._writer = writer
        self._wakeup = wakeup
        self._bytes_max = bytes_max
        self._buffer: deque[tuple[int, R | Damaged, int]] = deque()  # id, record, size
        self._buffered_bytes = 0
        self._base_id = shard_base_id(topic, shard)
        self._position = self._base_id  # id of the last entry returned
        self._last_stored = 0  # id of the last known entry that is not buffered
        self._must_query = True  # the database may have unknown entries
        self._is_querying = False

    def on_appended(self, entry_id: int, record: R | Damaged, size: int) -> None:
        end = self._buffer[-1][0] if self._buffer else self._position
        if entry_id <= end:
            return
        is_full = self._buffered_bytes + size > self._bytes_max
        if self._is_querying or self._must_query or self._last_stored > end or is_full:
            self._last_stored = entry_id
        else:
            self._buffer.append((entry_id, record, size))
            self._buffered_bytes += size
        self._wakeup.set()

    def on_reopened(self) -> None:
        self._must_query = True
        self._wakeup.set()

    def rewind(self) -> None:
        self._buffer.clear()
        self._buffered_bytes = 0
        self._position = self._base_id
        self._must_query = True

    async def read(self, limit: int) -> list[Entry[R] | Entry[Damaged]]:
        """The next entries from memory, else from the database; empty when there are none. Raises LogUnavailable."""
        entries = self._read_buffer(limit)
        if entries or limit <= 0 or not (self._must_query or self._last_stored > self._position):
            return entries
        await self._query(max(limit, _READ_AHEAD))
        return self._read_buffer(limit)

    def _read_buffer(self, limit: int) -> list[Entry[R] | Entry[Damaged]]:
        entries: list[Any] = []
        while self._buffer and len(entries) < limit:
            self._position, record, size = self._buffer.popleft()
            self._buffered_bytes -= size
            entries.append(Entry(self.topic.name, self.shard, offset_of(self._position), record))
        return entries

    async def _query(self, limit: int) -> None:
        self._is_querying, self._must_query = True, False
        is_done = False
        try:
            query = partial(Store.entries, topic=self.topic, shard=self.shard, after=self._position, limit=limit)
            entry_rows = await self._writer.query(query)
            for number, row in enumerate(entry_rows.rows):
                try:
                    record = decode_row(row, self.topic, self._writer.location)
                except LogUnusable:
                    if number == 0:
                        raise
                    return  # the entries before it are read first
                size = len(row.frame) + len(row.content or b"")
                self._buffer.append((row.id, record, size))
                self._buffered_bytes += size
            self._must_query |= entry_rows.more
            is_done = True
        finally:
            self._is_querying = False
            self._must_query |= not is_done


class EntryReaders:
    """The readers of the owned shards."""

    def __init__(self) -> None:
        self._readers: dict[tuple[str, int], EntryReader[Any]] = {}

    def add(self, reader: EntryReader[Any]) -> None:
        self._readers[reader.topic.name, reader.shard] = reader

    def remove(self, reader: EntryReader[Any]) -> None:
        if self._readers.get((reader.topic.name, reader.shard)) is reader:
            del self._readers[reader.topic.name, reader.shard]

    def on_appended(self, change: Change, ids: Sequence[int]) -> None:
        """Pass durable entries to the owners of their shards."""
        for entry_id, entry in zip(ids, change.entries, strict=True):
            topic, shard = topic_and_shard_of(entry_id)
            reader = self._readers.get((topic.name, shard))
            if reader is not None and entry.record is not None:
                size = len(entry.frame) + len(inline_content(entry.record))
                reader.on_appended(entry_id, entry.record, size)

    def on_reopened(self) -> None:
        for reader in self._readers.values():
            reader.on_reopened()


async def _wait(wakeup: asyncio.Event, deadline: float | None) -> None:
    """Return when `wakeup` is set, and clear it, or at the loop time `deadline`."""
    await is_set_within(wakeup, None if deadline is None else deadline - asyncio.get_running_loop().time())
    wakeup.clear()


class EmbeddedRouterShard:
    def __init__(self, writer: Writer, readers: EntryReaders, number: int, bytes_max: int) -> None:
        self.number = number
        self._writer = writer
        self._readers = readers
        self._wakeup = asyncio.Event()
        self._is_lost = self._is_closed = False
        self._attempted: EntryReader[Attempted] = EntryReader(writer, ATTEMPTED, number, self._wakeup, bytes_max)
        self._accepted: EntryReader[Accepted] = EntryReader(writer, ACCEPTED, number, self._wakeup, bytes_max)
        self._uncommitted: dict[str, deque[int]] = {ATTEMPTED.name: deque(), ACCEPTED.name: deque()}
        readers.add(self._attempted)
        readers.add(self._accepted)

    def revoke(self) -> None:
        self._readers.remove(self._attempted)
        self._readers.remove(self._accepted)
        self._is_lost = True
        self._wakeup.set()

    def close(self) -> None:
        self._is_closed = True

    def owns(self, queue_id: QueueId) -> bool:
        return shard_of_message(queue_id, self._writer.counts) == self.number

    async def find_dispatches(self, delivery_ids: Collection[DeliveryId]) -> Mapping[DeliveryId, FoundDispatch]:
        named = await self._writer.query(partial(Store.named_deliveries, without=()))
        found = {each: FoundDispatch(None, is_open=each in named) for each in delivery_ids}
        for row in await self._writer.query(partial(Store.find_dispatches, delivery_ids=found.keys())):
            record = decode_row(row, DISPATCHED, self._writer.location)
            if not isinstance(record, Damaged) and record.delivery.id in found:
                found[record.delivery.id] = FoundDispatch(record, is_open=True)
        return found

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event | Damaged]:
        after = 0
        while rows := await self._writer.query(partial(Store.events, queue_id=queue_id, after=after, limit=500)):
            after = rows[-1][0]
            for event_id, frame in rows:
                try:
                    yield decode(frame, Event)
                except FrameError as reason:
                    yield Damaged(EVENTS.name, self.number, event_id, queue_id, frame, str(reason))

    async def lost_deliveries(
        self, active: Collection[DeliveryId], damaged: Sequence[Entry[Damaged]]
    ) -> Collection[DeliveryId]:
        ids = {
            shard_base_id(topic, entry.shard) + entry.offset
            for entry in damaged
            for topic in (ATTEMPTED, ACCEPTED)
            if topic.name == entry.topic
        }
        named = await self._writer.query(partial(Store.named_deliveries, without=ids))
        lost = [delivery_id for delivery_id in active if delivery_id not in named]
        if lost and not damaged and await self._writer.query(Store.has_damaged_reports):
            return ()  # perhaps theirs, which will be read
        return lost

    async def replay(self) -> AsyncIterator[Sequence[QueueEntry | Damaged]]:
        key = ""
        query = partial(Store.compacted, topic=QUEUE, shard=self.number, limit=_REPLAY_BATCH)
        while rows := await self._writer.query(partial(query, after=key)):
            key = rows[-1][0]
            yield [self._decode_queue_entry(*row) for row in rows]

    def _decode_queue_entry(self, row_key: str, frame: bytes) -> QueueEntry | Damaged:
        raw_key = encode_text(row_key.partition("/")[2])
        try:
            return decode_queue_entry(self.number, raw_key, frame)
        except UnknownVersion as reason:
            position = f"{QUEUE.name}, shard {self.number}, key {raw_key.decode(errors='replace')}"
            raise newer_version(self._writer.location, position, reason) from None

    async def remove_keys(self, raw_keys: Sequence[bytes]) -> None:
        if self._is_closed or self._writer.crashed.is_set():
            raise ShardLost
        first = compacted_key(QUEUE, self.number, "").encode()
        await self._writer.query(partial(Store.remove_keys, raw_keys=[first + raw_key for raw_key in raw_keys]))

    async def read(self, limit: int, wait: timedelta) -> Sequence[Input]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait.total_seconds()
        while not self._is_lost:
            # Attempts first: they free room.
            attempted = await self._attempted.read(limit)
            self._uncommitted[ATTEMPTED.name].extend(entry.offset for entry in attempted)
            try:
                accepted = await self._accepted.read(limit - len(attempted))
            except LogUnavailable:
                if not attempted:
                    raise
                accepted = []  # the attempts that were read must not be lost
            self._uncommitted[ACCEPTED.name].extend(entry.offset for entry in accepted)
            if attempted or accepted:
                return [*attempted, *accepted]
            if loop.time() >= deadline:
                return ()
            await _wait(self._wakeup, deadline)
        raise ShardLost

    async def commit(self, outputs: Sequence[Record], consumed: Sequence[Input]) -> None:
        change, sources = Change(), _content_sources(consumed)
        for start in range(0, len(outputs), _ENCODE_BATCH):
            change.add(outputs[start : start + _ENCODE_BATCH], self._writer.place, sources)
            if start:
                await asyncio.sleep(0)
        consumed_offsets = {
            topic: [entry.offset for entry in consumed if entry.topic == topic.name] for topic in (ATTEMPTED, ACCEPTED)
        }
        for topic, offsets in consumed_offsets.items():
            if offsets != list(islice(self._uncommitted[topic.name], len(offsets))):
                raise ValueError(f"consumed entries of {topic.name} are not those that were read, in order")
            if offsets:
                first = shard_base_id(topic, self.number)
                change.ranges.append((first + offsets[0], first + offsets[-1]))
        if self._is_closed or self._writer.crashed.is_set():
            raise ShardLost
        with PRODUCE_DURATION.time():
            await self._writer.change(change, waits_without_limit=True)
        for topic, offsets in consumed_offsets.items():
            for _ in offsets:
                self._uncommitted[topic.name].popleft()

    async def rewind(self) -> None:
        # An unconfirmed commit may still be made; the next reads queue behind it and see it whole.
        for reader in (self._attempted, self._accepted):
            reader.rewind()
            self._uncommitted[reader.topic.name].clear()


class EmbeddedDeliveryShard:
    def __init__(self, writer: Writer, readers: EntryReaders, number: int, bytes_max: int) -> None:
        self.number = number
        self.lost = asyncio.Event()
        self._writer = writer
        self._readers = readers
        self._is_closed = False
        self._wakeup = asyncio.Event()
        self._dispatched: EntryReader[Dispatched] = EntryReader(writer, DISPATCHED, number, self._wakeup, bytes_max)
        readers.add(self._dispatched)

    def revoke(self) -> None:
        self._readers.remove(self._dispatched)
        self.lost.set()
        self._wakeup.set()

    def close(self) -> None:
        self._is_closed = True

    async def read(self, limit: int, wait: timedelta | None = None) -> Sequence[Entry[Dispatched] | Entry[Damaged]]:
        loop = asyncio.get_running_loop()
        deadline = None if wait is None else loop.time() + wait.total_seconds()
        while not self.lost.is_set():
            entries = await self._dispatched.read(limit)
            if entries or (deadline is not None and loop.time() >= deadline):
                return entries
            await _wait(self._wakeup, deadline)
        raise ShardLost

    async def finish(self, entry: Entry[Dispatched] | Entry[Damaged], attempted: Attempted | Damaged) -> None:
        if self._is_closed or self._writer.crashed.is_set():
            raise ShardLost
        counts = self._writer.counts
        entry_id = shard_base_id(DISPATCHED, entry.shard) + entry.offset
        change = Change(finished=[entry_id])
        if isinstance(attempted, Damaged):
            frames = [(shard, attempted.frame) for shard in report_shards(attempted, counts)]
        else:
            _, shard, _ = self._writer.place(attempted)
            frames = [(shard, encode(attempted) or b"")]
        # The content stays until the report is consumed: without it, the delivery of a damaged report would be lost.
        change.add_reports(attempted, frames, content_of=-entry_id)
        with PRODUCE_DURATION.time():
            await self._writer.change(change)


def _content_sources(consumed: Sequence[Input]) -> dict[int, int]:
    """Entries with stored content, by the identity of its bytes, which the caller keeps alive."""
    return {
        id(content): shard_base_id(ACCEPTED, entry.shard) + entry.offset
        for entry in consumed
        if (content := inline_content(entry.record))
    }
