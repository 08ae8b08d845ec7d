"""Shards of the embedded log: reads, router commits and delivery finishes.

Entries that become durable while their shard is owned are passed to the owner from memory, up to a size limit; all
others are read from the database. Each entry is read once, in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast

from mail.log import Entry, LogUnavailable, LogUnusable, ShardLost
from mail.log.codec import FrameError, decode
from mail.log.embedded.commit import Change, offset_of, shard_base_id
from mail.log.embedded.store import UNREADABLE_ADVICE, EntryRow, Store
from mail.log.embedded.writer import Writer
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, QUEUE, Topic
from mail.message import Inline
from mail.record import Accepted, Attempted, Dispatched, Pending, Record
from mail.telemetry.log import PRODUCE_DURATION

R = TypeVar("R", Accepted, Attempted, Dispatched)

_REPLAY_BATCH = 500
_READ_AHEAD = 200  # least number of entries per database read
_ENCODE_BATCH = 500  # records encoded before other tasks run


class ShardHost(Protocol):
    """The part of the log that a shard uses."""

    @property
    def writer(self) -> Writer: ...

    def add_records(self, change: Change, records: Sequence[Record], sources: Mapping[int, int]) -> None: ...

    def register_reader(self, reader: PartitionReader[Any]) -> None: ...

    def unregister_reader(self, reader: PartitionReader[Any]) -> None: ...

    def location(self) -> str: ...


class Wakeup:
    """Wakes the task that waits for a shard."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self._notified = False
        self.lost = False

    def notify(self) -> None:
        self._notified = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self, until: float | None) -> None:
        """Return when notified since the last wait, or at the loop time `until`."""
        if self._notified:  # during the read before this wait
            self._notified = False
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if until is None else loop.call_at(until, self.notify)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._notified = False
            if timer is not None:
                timer.cancel()


class PartitionReader(Generic[R]):
    """The read position in one shard of one topic."""

    def __init__(self, host: ShardHost, topic: Topic, shard: int, wakeup: Wakeup, bytes_max: int) -> None:
        self.topic = topic
        self.shard = shard
        self._host = host
        self._wakeup = wakeup
        self._bytes_max = bytes_max
        self._entries: deque[tuple[int, R, int]] = deque()  # id, record, size
        self._bytes = 0
        self._base_id = shard_base_id(topic, shard)
        self._position = self._base_id  # id of the last entry returned
        self._last_stored = 0  # id of the last known entry that is not buffered
        self._must_query = True  # the database may have unknown entries
        self._is_querying = False

    def on_appended(self, entry_id: int, record: R, size: int) -> None:
        end = self._entries[-1][0] if self._entries else self._position
        if entry_id <= end:
            return
        if self._is_querying or self._must_query or self._last_stored > end or self._bytes + size > self._bytes_max:
            self._last_stored = entry_id
        else:
            self._entries.append((entry_id, record, size))
            self._bytes += size
        self._wakeup.notify()

    def rewind(self) -> None:
        self._entries.clear()
        self._bytes = 0
        self._position = self._base_id
        self._must_query = True

    def on_reopened(self) -> None:
        self._must_query = True
        self._wakeup.notify()

    async def read(self, limit: int) -> list[Entry[R]]:
        """The next entries from memory, else from the database; empty when there are none. Raises LogUnavailable."""
        entries = self._read_buffered(limit)
        if entries or limit <= 0 or not (self._must_query or self._last_stored > self._position):
            return entries
        await self._query(max(limit, _READ_AHEAD))
        return self._read_buffered(limit)

    def _read_buffered(self, limit: int) -> list[Entry[R]]:
        read_entries: list[Entry[R]] = []
        entries = self._entries
        while entries and len(read_entries) < limit:
            entry_id, record, size = entries.popleft()
            self._bytes -= size
            self._position = entry_id
            read_entries.append(Entry(self.topic.name, self.shard, offset_of(entry_id), record))
        return read_entries

    async def _query(self, limit: int) -> None:
        self._is_querying, self._must_query = True, False
        done = False
        try:
            query = partial(Store.entries, topic=self.topic, shard=self.shard, after=self._position, limit=limit)
            entry_rows = await self._host.writer.query(query)
            for row, record in [(row, self._decode_row(row)) for row in entry_rows.rows]:
                size = len(row.frame) + len(row.content or b"")
                self._entries.append((row.id, record, size))
                self._bytes += size
            self._must_query |= entry_rows.more
            done = True
        finally:
            self._is_querying = False
            self._must_query |= not done

    def _decode_row(self, row: EntryRow) -> R:
        offset = offset_of(row.id)
        try:
            return cast("R", row.record())
        except FrameError as reason:
            raise LogUnusable(
                f"{self._host.location()}: the entry at {self.topic.name}, shard {self.shard}, offset {offset}"
                f" cannot be read: {reason}; {UNREADABLE_ADVICE}"
            ) from None


class EmbeddedRouterShard:
    def __init__(self, host: ShardHost, number: int, bytes_max: int) -> None:
        self.number = number
        self._host = host
        self._wakeup = Wakeup()
        self._closed = False
        self._attempted: PartitionReader[Attempted] = PartitionReader(host, ATTEMPTED, number, self._wakeup, bytes_max)
        self._accepted: PartitionReader[Accepted] = PartitionReader(host, ACCEPTED, number, self._wakeup, bytes_max)
        self._uncommitted: dict[str, deque[int]] = {ATTEMPTED.name: deque(), ACCEPTED.name: deque()}
        host.register_reader(self._attempted)
        host.register_reader(self._accepted)

    def revoke(self) -> None:
        self._host.unregister_reader(self._attempted)
        self._host.unregister_reader(self._accepted)
        self._wakeup.lost = True
        self._wakeup.notify()

    def close(self) -> None:
        self._closed = True

    async def replay(self) -> AsyncIterator[Sequence[Pending]]:
        after = ""
        while True:
            query = partial(Store.pending, shard=self.number, after=after, limit=_REPLAY_BATCH)
            rows = await self._host.writer.query(query)
            if not rows:
                return
            after = rows[-1][0]
            yield [decode_pending(frame, self._host.location(), self.number, key) for key, frame in rows]

    async def read(self, limit: int, wait: timedelta) -> Sequence[Entry[Accepted] | Entry[Attempted]]:
        deadline = asyncio.get_running_loop().time() + wait.total_seconds()
        while not self._wakeup.lost:
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
            if asyncio.get_running_loop().time() >= deadline:
                return ()
            await self._wakeup.wait(deadline)
        raise ShardLost

    async def commit(self, outputs: Sequence[Record], consumed: Sequence[Entry[Accepted] | Entry[Attempted]]) -> None:
        change, sources = Change(), _content_sources(consumed)
        for at in range(0, len(outputs), _ENCODE_BATCH):
            self._host.add_records(change, outputs[at : at + _ENCODE_BATCH], sources)
            if at:
                await asyncio.sleep(0)
        consumed_offsets = {
            topic: [e.offset for e in consumed if e.topic == topic.name] for topic in (ATTEMPTED, ACCEPTED)
        }
        for topic, offsets in consumed_offsets.items():
            uncommitted = self._uncommitted[topic.name]
            if offsets != [offset for offset, _ in zip(uncommitted, offsets, strict=False)]:
                raise ValueError(f"consumed entries of {topic.name} are not those that were read, in order")
            if offsets:
                first = shard_base_id(topic, self.number)
                change.ranges.append((first + offsets[0], first + offsets[-1]))
        if self._closed:
            raise ShardLost
        with PRODUCE_DURATION.time():
            await self._host.writer.change(change, outputs, waits_without_limit=True)
        for topic, offsets in consumed_offsets.items():
            for _ in offsets:
                self._uncommitted[topic.name].popleft()

    async def rewind(self) -> None:
        # An unconfirmed commit may still be made; the next reads queue behind it and see it whole.
        for reader in (self._attempted, self._accepted):
            reader.rewind()
            self._uncommitted[reader.topic.name].clear()


class EmbeddedDeliveryShard:
    def __init__(self, host: ShardHost, number: int, bytes_max: int) -> None:
        self.number = number
        self._host = host
        self.lost = asyncio.Event()
        self._closed = False
        self._wakeup = Wakeup()
        self._dispatched: PartitionReader[Dispatched] = PartitionReader(
            host, DISPATCHED, number, self._wakeup, bytes_max
        )
        host.register_reader(self._dispatched)

    def revoke(self) -> None:
        self._host.unregister_reader(self._dispatched)
        self.lost.set()
        self._wakeup.notify()

    def close(self) -> None:
        self._closed = True

    async def read(self, limit: int, wait: timedelta | None = None) -> Sequence[Entry[Dispatched]]:
        loop = asyncio.get_running_loop()
        deadline = None if wait is None else loop.time() + wait.total_seconds()
        while not self.lost.is_set():
            entries = await self._dispatched.read(limit)
            if entries or (deadline is not None and loop.time() >= deadline):
                return entries
            await self._wakeup.wait(deadline)
        raise ShardLost

    async def finish(self, entry: Entry[Dispatched], attempted: Attempted) -> None:
        if self._closed:
            raise ShardLost
        records = (attempted,)
        change = Change()
        self._host.add_records(change, records, {})
        change.finished.append(shard_base_id(DISPATCHED, entry.shard) + entry.offset)
        with PRODUCE_DURATION.time():
            await self._host.writer.change(change, records)


def _content_sources(consumed: Sequence[Entry[Accepted] | Entry[Attempted]]) -> dict[int, int]:
    """Entries with stored content, by the identity of its bytes, which the caller keeps alive."""
    return {
        id(entry.record.content.data): shard_base_id(ACCEPTED, entry.shard) + entry.offset
        for entry in consumed
        if isinstance(entry.record, Accepted) and isinstance(entry.record.content, Inline) and entry.record.content.data
    }


def decode_pending(frame: bytes, location: str, shard: int, key: str) -> Pending:
    try:
        return cast("Pending", decode(frame))
    except FrameError as reason:
        raise LogUnusable(
            f"{location}: the entry at {QUEUE.name}, shard {shard}, key {key.partition('/')[2]} cannot be "
            f"read: {reason};"
            f" {UNREADABLE_ADVICE}"
        ) from None
