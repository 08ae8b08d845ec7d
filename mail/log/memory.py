"""A log in memory, for tests and trials: the whole contract of the port, and nothing survives the object.

It keeps frames, not objects, so whatever cannot be written fails here too. `close()` and `start()` of the same object
stand for a restart. `fail()` plays a log that does not answer. Next: `mail/log/embedded/__init__.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Generic, TypeVar, cast

from mail.log import (
    Backlog,
    Condition,
    Down,
    Entry,
    Full,
    Joined,
    LogUnavailable,
    LogUnusable,
    ShardLost,
    Tend,
    TendDelivery,
    Usable,
)
from mail.log.codec import FrameError, decode, encode
from mail.log.ownership import Turn
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, EVENTS, QUEUE, ShardCounts, Topic, place
from mail.message import QueueId
from mail.record import Accepted, Attempted, Dispatched, Event, Pending, Record, received_time
from mail.settings import LogSettings

Input = Accepted | Attempted | Dispatched
R = TypeVar("R", Accepted, Attempted, Dispatched)

_REPLAY_BATCH = 500


class _Partition(Generic[R]):
    """What is not consumed of one shard of one topic, and what its owner has not taken yet."""

    def __init__(self, topic: Topic, shard: int) -> None:
        self.topic = topic
        self.shard = shard
        self.kept: dict[int, bytes] = {}
        self.unread: deque[int] = deque()

    def add(self, offset: int, frame: bytes) -> None:
        self.kept[offset] = frame
        self.unread.append(offset)

    def rewind(self) -> None:
        self.unread = deque(self.kept)

    def take(self, limit: int) -> list[Entry[R]]:
        taken: list[Entry[R]] = []
        while self.unread and len(taken) < limit:
            offset = self.unread[0]
            frame = self.kept.get(offset)
            if frame is not None:  # finished after the last owner took it
                record = _read(frame, self.topic, self.shard, f"offset {offset}")
                taken.append(Entry(self.topic.name, self.shard, offset, cast("R", record)))
            self.unread.popleft()
        return taken


class MemoryLog:
    """The Log port. All shards of a kind belong to one owner at a time."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self.counts = ShardCounts(settings.shards or 1, settings.delivery_shards or 1)
        self._offset = 0
        by_queue_id, by_site = range(self.counts.by_queue_id), range(self.counts.by_site)
        self._partitions: dict[tuple[str, int], _Partition[Any]] = {
            **{
                (topic.name, shard): _Partition(topic, shard)
                for topic in (ACCEPTED, ATTEMPTED)
                for shard in by_queue_id
            },
            **{(DISPATCHED.name, shard): _Partition(DISPATCHED, shard) for shard in by_site},
        }
        self._lines: list[dict[str, bytes]] = [{} for _ in by_queue_id]
        self._events: dict[QueueId, list[tuple[datetime, bytes]]] = {}
        self._news: set[asyncio.Future[None]] = set()
        self._router_turn = Turn("router")
        self._delivery_turn = Turn("delivery")
        self._failing: str | None = None

    # --- life

    async def start(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """What was appended stays for the next `start` of this object."""

    def fail(self, reason: str | None) -> None:
        """Play a log that does not answer, until `fail(None)`."""
        self._failing = reason

    async def oldest_unconsumed(self) -> datetime | None:
        first = [
            received_time(cast("Input", _read(frame, partition.topic, partition.shard, f"offset {offset}")))
            for partition in self._partitions.values()
            for offset, frame in islice(partition.kept.items(), 1)
        ]
        return min(first, default=None)

    async def purge(self) -> None:
        """Events past their age go; what is consumed went at once."""
        oldest = datetime.now(UTC) - self._settings.events_kept
        for queue_id, events in list(self._events.items()):
            kept = [(time, frame) for time, frame in events if time >= oldest]
            if kept:
                self._events[queue_id] = kept
            else:
                del self._events[queue_id]

    # --- Appender

    async def append(self, record: Record) -> None:
        self.write([record])

    async def prepare(self, _tenant: str, /) -> None:
        """There is one log for all."""

    def condition(self, _tenant: str = "", /) -> Condition:
        if self._failing is not None:
            return Down(self._failing)
        waiting = self._waiting(ACCEPTED)
        if waiting >= self._settings.backlog_max:
            return Full(f"{waiting} messages wait to be routed")
        return Usable()

    def worker_condition(self) -> Condition:
        return self.condition()

    def warnings(self) -> Sequence[str]:
        return ()

    async def reload(self) -> None:
        """It reads no files."""

    # --- RouterLog, DeliveryLog

    async def route(self, tend: Tend, stop: asyncio.Event, joined: Joined | None = None) -> None:
        await self._router_turn.own(
            lambda: [_MemoryRouterShard(self, n) for n in range(self.counts.by_queue_id)], tend, stop, joined
        )

    async def deliver(self, tend: TendDelivery, stop: asyncio.Event, joined: Joined | None = None) -> None:
        await self._delivery_turn.own(
            lambda: [_MemoryDeliveryShard(self, n) for n in range(self.counts.by_site)], tend, stop, joined
        )

    # --- HistoryLog

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        for _, frame in list(self._events.get(queue_id, ())):
            yield cast("Event", _read(frame, EVENTS, 0, f"key {queue_id}"))

    async def open_lines(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        for shard in range(self.counts.by_queue_id):
            for line in self.lines_of(shard):
                if queue_id is None or line.delivery.message.queue_id == queue_id:
                    yield line

    async def waiting_inputs(self, queue_id: QueueId) -> Sequence[Accepted]:
        records = [
            cast("Accepted", _read(frame, ACCEPTED, partition.shard, f"offset {offset}"))
            for (topic, _), partition in self._partitions.items()
            if topic == ACCEPTED.name
            for offset, frame in partition.kept.items()
        ]
        return [record for record in records if record.message.queue_id == queue_id]

    async def backlog(self) -> Backlog:
        return Backlog(*(self._waiting(topic) for topic in (ACCEPTED, DISPATCHED, ATTEMPTED)))

    # --- for the shards

    def partition(self, topic: Topic, shard: int) -> _Partition[Any]:
        return self._partitions[topic.name, shard]

    def write(self, records: Sequence[Record], consumed: Sequence[Entry[Any]] = ()) -> None:
        """All of it or, when anything cannot be encoded or the log fails, none."""
        if self._failing is not None:
            raise LogUnavailable(self._failing)
        places = [(place(record, self.counts), encode(record), record) for record in records]
        for at, frame, record in places:
            self._offset += 1
            match at.topic.name:
                case QUEUE.name:
                    if frame is None:
                        self._lines[at.shard].pop(at.key, None)
                    else:
                        self._lines[at.shard][at.key] = frame
                case EVENTS.name if isinstance(record, Event) and frame is not None:
                    self._events.setdefault(record.queue_id, []).append((record.time, frame))
                case _:
                    assert frame is not None
                    self.partition(at.topic, at.shard).add(self._offset, frame)
        for entry in consumed:
            self._partitions[entry.topic, entry.shard].kept.pop(entry.offset, None)
        self.wake()

    def lines_of(self, shard: int) -> list[Pending]:
        return [
            cast("Pending", _read(frame, QUEUE, shard, f"key {key}")) for key, frame in list(self._lines[shard].items())
        ]

    def wake(self) -> None:
        for waiter in self._news:
            if not waiter.done():
                waiter.set_result(None)
        self._news.clear()

    async def news(self, wait: timedelta | None) -> None:
        """Return when something was written or lost, or after `wait`."""
        waiter = asyncio.get_running_loop().create_future()
        self._news.add(waiter)
        try:
            await asyncio.wait({waiter}, timeout=None if wait is None else wait.total_seconds())
        finally:
            self._news.discard(waiter)

    def _waiting(self, topic: Topic) -> int:
        return sum(len(p.kept) for (name, _), p in self._partitions.items() if name == topic.name)


class _MemoryRouterShard:
    def __init__(self, log: MemoryLog, number: int) -> None:
        self._log = log
        self.number = number
        self._lost = self._closed = False
        self._inputs = [log.partition(ATTEMPTED, number), log.partition(ACCEPTED, number)]
        for partition in self._inputs:
            partition.rewind()

    def lose(self) -> None:
        self._lost = True
        self._log.wake()

    def close(self) -> None:
        self._closed = True

    async def replay(self) -> AsyncIterator[Sequence[Pending]]:
        lines = iter(self._log.lines_of(self.number))
        while batch := list(islice(lines, _REPLAY_BATCH)):
            yield batch

    async def take(self, limit: int, wait: timedelta) -> Sequence[Entry[Accepted] | Entry[Attempted]]:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait.total_seconds()
        while not self._lost:
            taken: list[Entry[Accepted] | Entry[Attempted]] = []
            for partition in self._inputs:
                taken += partition.take(limit - len(taken))
            left = until - loop.time()
            if taken or left <= 0:
                return taken
            await self._log.news(timedelta(seconds=left))
        raise ShardLost

    async def commit(self, outputs: Sequence[Record], consumed: Sequence[Entry[Accepted] | Entry[Attempted]]) -> None:
        await asyncio.sleep(0)
        if self._closed:
            raise ShardLost
        self._log.write(outputs, consumed)

    async def rewind(self) -> None:
        if not self._closed:
            for partition in self._inputs:
                partition.rewind()


class _MemoryDeliveryShard:
    def __init__(self, log: MemoryLog, number: int) -> None:
        self._log = log
        self.number = number
        self.lost = asyncio.Event()
        self._closed = False
        self._input: _Partition[Dispatched] = log.partition(DISPATCHED, number)
        self._input.rewind()

    def lose(self) -> None:
        self.lost.set()
        self._log.wake()

    def close(self) -> None:
        self._closed = True

    async def take(self, limit: int, wait: timedelta | None = None) -> Sequence[Entry[Dispatched]]:
        loop = asyncio.get_running_loop()
        until = None if wait is None else loop.time() + wait.total_seconds()
        while not self.lost.is_set():
            taken = self._input.take(limit)
            left = None if until is None else until - loop.time()
            if taken or (left is not None and left <= 0):
                return taken
            await self._log.news(None if left is None else timedelta(seconds=left))
        raise ShardLost

    async def finish(self, entry: Entry[Dispatched], attempted: Attempted) -> None:
        if self._closed:
            raise ShardLost
        self._log.write([attempted], [entry])


def _read(frame: bytes, topic: Topic, shard: int, where: str) -> Record:
    try:
        return decode(frame)
    except FrameError as reason:
        raise LogUnusable(f"the log in memory: {topic.name}, shard {shard}, {where}: {reason}") from None
