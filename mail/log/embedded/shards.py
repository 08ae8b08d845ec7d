"""Reading shards of the embedded log: what its owner takes, commits and finishes.

A `Tail` is a reading position. Entries that become durable while their shard is owned are handed over from memory, as
the records they were, up to a bound; what does not fit, and what was there before, is read from the database. Both
ways give each entry once, in order. Next: `router/decide.py`.
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
from mail.log.embedded.commit import Change, first_id, offset_of
from mail.log.embedded.store import LEFT_ALONE, EntryRow, Store
from mail.log.embedded.writer import Writer
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, QUEUE, Topic
from mail.message import Inline
from mail.record import Accepted, Attempted, Dispatched, Pending, Record
from mail.telemetry.log import PRODUCE_DURATION

R = TypeVar("R", Accepted, Attempted, Dispatched)

_REPLAY_BATCH = 500
_READ_AHEAD = 200  # entries, read from the database together, however few are asked for
_ENCODED_AT_ONCE = 500  # records, before the others have their turn


class Host(Protocol):
    """What a shard needs of the log it belongs to."""

    @property
    def writer(self) -> Writer: ...

    def add_to(self, change: Change, records: Sequence[Record], sources: Mapping[int, int]) -> None: ...

    def gained(self, tail: Tail[Any]) -> None: ...

    def lost(self, tail: Tail[Any]) -> None: ...

    def where(self) -> str: ...


class News:
    """Wakes the one who waits for a shard."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self._told = False
        self.lost = False

    def tell(self) -> None:
        self._told = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self, until: float | None) -> None:
        """Return when told, since the last wait or from now on, or when the loop's clock says `until`."""
        if self._told:  # while the one who waits now was reading
            self._told = False
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if until is None else loop.call_at(until, self.tell)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._told = False
            if timer is not None:
                timer.cancel()


class Tail(Generic[R]):
    """The reading position in one shard of one topic."""

    def __init__(self, host: Host, topic: Topic, shard: int, news: News, bytes_max: int) -> None:
        self.topic = topic
        self.shard = shard
        self._host = host
        self._news = news
        self._bytes_max = bytes_max
        self._entries: deque[tuple[int, R, int]] = deque()  # id, record, size
        self._bytes = 0
        self._first = first_id(topic, shard)
        self._position = self._first  # the last entry handed out
        self._stored = 0  # the last entry that is only in the database, as far as we were told
        self._unknown = True  # there may be entries in the database that nobody told us of
        self._reading = False

    def arrived(self, entry_id: int, record: R, size: int) -> None:
        end = self._entries[-1][0] if self._entries else self._position
        if entry_id <= end:
            return
        if self._reading or self._unknown or self._stored > end or self._bytes + size > self._bytes_max:
            self._stored = entry_id
        else:
            self._entries.append((entry_id, record, size))
            self._bytes += size
        self._news.tell()

    def rewind(self) -> None:
        self._entries.clear()
        self._bytes = 0
        self._position = self._first
        self._unknown = True

    def reopened(self) -> None:
        self._unknown = True
        self._news.tell()

    async def take(self, limit: int) -> list[Entry[R]]:
        """The next entries, from memory, else from the database; empty when there are none. Raises LogUnavailable."""
        taken = self._hand_out(limit)
        if taken or limit <= 0 or not (self._unknown or self._stored > self._position):
            return taken
        await self._read(max(limit, _READ_AHEAD))
        return self._hand_out(limit)

    def _hand_out(self, limit: int) -> list[Entry[R]]:
        taken: list[Entry[R]] = []
        entries = self._entries
        while entries and len(taken) < limit:
            entry_id, record, size = entries.popleft()
            self._bytes -= size
            self._position = entry_id
            taken.append(Entry(self.topic.name, self.shard, offset_of(entry_id), record))
        return taken

    async def _read(self, limit: int) -> None:
        self._reading, self._unknown = True, False
        done = False
        try:
            question = partial(Store.entries, topic=self.topic, shard=self.shard, after=self._position, limit=limit)
            found = await self._host.writer.ask(question)
            for row, record in [(row, self._read_row(row)) for row in found.rows]:
                size = len(row.frame) + len(row.content or b"")
                self._entries.append((row.id, record, size))
                self._bytes += size
            self._unknown |= found.more
            done = True
        finally:
            self._reading = False
            self._unknown |= not done

    def _read_row(self, row: EntryRow) -> R:
        offset = offset_of(row.id)
        try:
            return cast("R", row.record())
        except FrameError as reason:
            raise LogUnusable(
                f"{self._host.where()}: the entry at {self.topic.name}, shard {self.shard}, offset {offset}"
                f" cannot be read: {reason}; {LEFT_ALONE}"
            ) from None


class EmbeddedRouterShard:
    def __init__(self, host: Host, number: int, bytes_max: int) -> None:
        self.number = number
        self._host = host
        self._news = News()
        self._closed = False
        self._attempted: Tail[Attempted] = Tail(host, ATTEMPTED, number, self._news, bytes_max)
        self._accepted: Tail[Accepted] = Tail(host, ACCEPTED, number, self._news, bytes_max)
        self._taken: dict[str, deque[int]] = {ATTEMPTED.name: deque(), ACCEPTED.name: deque()}
        host.gained(self._attempted)
        host.gained(self._accepted)

    def lose(self) -> None:
        self._host.lost(self._attempted)
        self._host.lost(self._accepted)
        self._news.lost = True
        self._news.tell()

    def close(self) -> None:
        self._closed = True

    async def replay(self) -> AsyncIterator[Sequence[Pending]]:
        after = ""
        while True:
            question = partial(Store.lines, shard=self.number, after=after, limit=_REPLAY_BATCH)
            rows = await self._host.writer.ask(question)
            if not rows:
                return
            after = rows[-1][0]
            yield [read_line(frame, self._host.where(), self.number, key) for key, frame in rows]

    async def take(self, limit: int, wait: timedelta) -> Sequence[Entry[Accepted] | Entry[Attempted]]:
        until = asyncio.get_running_loop().time() + wait.total_seconds()
        while not self._news.lost:
            # What came back from delivery goes first: it makes room.
            attempted = await self._attempted.take(limit)
            self._taken[ATTEMPTED.name].extend(entry.offset for entry in attempted)
            try:
                accepted = await self._accepted.take(limit - len(attempted))
            except LogUnavailable:
                if not attempted:
                    raise
                accepted = []  # what is already taken must not be lost with the exception
            self._taken[ACCEPTED.name].extend(entry.offset for entry in accepted)
            if attempted or accepted:
                return [*attempted, *accepted]
            if asyncio.get_running_loop().time() >= until:
                return ()
            await self._news.wait(until)
        raise ShardLost

    async def commit(self, outputs: Sequence[Record], consumed: Sequence[Entry[Accepted] | Entry[Attempted]]) -> None:
        change, sources = Change(), _sources(consumed)
        for at in range(0, len(outputs), _ENCODED_AT_ONCE):
            self._host.add_to(change, outputs[at : at + _ENCODED_AT_ONCE], sources)
            if at:
                await asyncio.sleep(0)
        marks = {topic: [e.offset for e in consumed if e.topic == topic.name] for topic in (ATTEMPTED, ACCEPTED)}
        for topic, offsets in marks.items():
            taken = self._taken[topic.name]
            if offsets != [offset for offset, _ in zip(taken, offsets, strict=False)]:
                raise ValueError(f"consumed is not what was taken of {topic.name}, in its order")
            if offsets:
                first = first_id(topic, self.number)
                change.ranges.append((first + offsets[0], first + offsets[-1]))
        if self._closed:
            raise ShardLost
        with PRODUCE_DURATION.time():
            await self._host.writer.change(change, outputs, patient=True)
        for topic, offsets in marks.items():
            for _ in offsets:
                self._taken[topic.name].popleft()

    async def rewind(self) -> None:
        # A commit that was not confirmed may still be made; the reads that follow stand behind it and see it whole.
        for tail in (self._attempted, self._accepted):
            tail.rewind()
            self._taken[tail.topic.name].clear()


class EmbeddedDeliveryShard:
    def __init__(self, host: Host, number: int, bytes_max: int) -> None:
        self.number = number
        self._host = host
        self.lost = asyncio.Event()
        self._closed = False
        self._news = News()
        self._dispatched: Tail[Dispatched] = Tail(host, DISPATCHED, number, self._news, bytes_max)
        host.gained(self._dispatched)

    def lose(self) -> None:
        self._host.lost(self._dispatched)
        self.lost.set()
        self._news.tell()

    def close(self) -> None:
        self._closed = True

    async def take(self, limit: int, wait: timedelta | None = None) -> Sequence[Entry[Dispatched]]:
        loop = asyncio.get_running_loop()
        until = None if wait is None else loop.time() + wait.total_seconds()
        while not self.lost.is_set():
            taken = await self._dispatched.take(limit)
            if taken or (until is not None and loop.time() >= until):
                return taken
            await self._news.wait(until)
        raise ShardLost

    async def finish(self, entry: Entry[Dispatched], attempted: Attempted) -> None:
        if self._closed:
            raise ShardLost
        records = (attempted,)
        change = Change()
        self._host.add_to(change, records, {})
        change.finished.append(first_id(DISPATCHED, entry.shard) + entry.offset)
        with PRODUCE_DURATION.time():
            await self._host.writer.change(change, records)


def _sources(consumed: Sequence[Entry[Accepted] | Entry[Attempted]]) -> dict[int, int]:
    """The entries that hold content already: by the identity of its bytes, which the caller keeps alive."""
    return {
        id(entry.record.content.data): first_id(ACCEPTED, entry.shard) + entry.offset
        for entry in consumed
        if isinstance(entry.record, Accepted) and isinstance(entry.record.content, Inline) and entry.record.content.data
    }


def read_line(frame: bytes, where: str, shard: int, key: str) -> Pending:
    try:
        return cast("Pending", decode(frame))
    except FrameError as reason:
        raise LogUnusable(
            f"{where}: the entry at {QUEUE.name}, shard {shard}, key {key.partition('/')[2]} cannot be read: {reason};"
            f" {LEFT_ALONE}"
        ) from None
