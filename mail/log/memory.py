"""In-memory log for tests and trials, with the whole contract of the port except durability.

It stores encoded frames, so a record that cannot be encoded fails here too. `close()` and `start()` of one object
simulate a restart; `fail()` simulates a log that does not respond.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar, cast

from mail.log import (
    UNKNOWN_TIME,
    Backlog,
    Condition,
    Damaged,
    DeliveryShardProcessor,
    Down,
    Entry,
    FoundDispatch,
    Full,
    Input,
    LogUnavailable,
    LogUnusable,
    OnReady,
    RouterShardProcessor,
    ShardLost,
    Usable,
)
from mail.log.codec import FrameError, UnknownVersion, decode, encode
from mail.log.damaged import decode_queue_entry, find_id, report_shards
from mail.log.followers import Followers, KeyedFrame
from mail.log.ownership import ExclusiveOwnership
from mail.log.queue_summary import QueueSummary
from mail.log.topics import (
    ACCEPTED,
    ATTEMPTED,
    DISPATCHED,
    EVENTS,
    QUEUE,
    TOPICS,
    ShardCounts,
    Topic,
    Topics,
    shard_of_message,
)
from mail.message import DeliveryId, QueueId
from mail.record import Accepted, Attempted, Dispatched, Event, QueueEntry, Record, received_time
from mail.settings import LogSettings
from mail.tasks import is_set_within

R = TypeVar("R", Accepted, Attempted, Dispatched)

_REPLAY_BATCH = 500


class _Partition(Generic[R]):
    """The unconsumed records of one shard of one topic, and those that its owner has not read."""

    def __init__(self, topic: Topic, shard: int) -> None:
        self.topic = topic
        self.shard = shard
        self.unconsumed: dict[int, bytes] = {}
        self.unread: deque[int] = deque()

    def append(self, offset: int, frame: bytes) -> None:
        self.unconsumed[offset] = frame
        self.unread.append(offset)

    def rewind(self) -> None:
        self.unread = deque(self.unconsumed)

    def read(self, limit: int) -> list[Any]:
        entries: list[Any] = []
        while self.unread and len(entries) < limit:
            offset = self.unread[0]
            frame = self.unconsumed.get(offset)
            if frame is not None:  # None: finished after the previous owner read it
                record = _decode(frame, self.topic, self.shard, offset)
                entries.append(Entry(self.topic.name, self.shard, offset, cast("Any", record)))
            self.unread.popleft()
        return entries


class MemoryLog:
    """All shards of a role belong to one owner at a time."""

    def __init__(self, settings: LogSettings, topics: Topics = TOPICS) -> None:
        self._settings = settings
        self._topics = topics
        self.counts = ShardCounts(settings.shards or 1, settings.delivery_shards or 1)
        self._offset = 0
        self._partitions: dict[tuple[str, int], _Partition[Any]] = {
            (topic.name, shard): _Partition(topic, shard)
            for topic in topics.consumed
            for shard in range(self.counts.of(topic))
        }
        self._compacted: dict[tuple[str, int], dict[str, bytes]] = defaultdict(dict)
        self._events: dict[QueueId, list[tuple[datetime, bytes]]] = {}
        self._changed = asyncio.Event()  # replaced at each change
        self._router_ownership = ExclusiveOwnership("router")
        self._delivery_ownership = ExclusiveOwnership("delivery")
        self._failure: str | None = None
        self._followers = Followers(lambda position, reason: LogUnusable(f"in-memory log: {position}: {reason}"))

    # --- life cycle

    async def start(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """The records stay for the next `start` of this object."""

    def fail(self, reason: str | None) -> None:
        """Simulate a log that does not respond, until `fail(None)`."""
        self._failure = reason

    async def oldest_unconsumed(self) -> datetime | None:
        first = [
            UNKNOWN_TIME if isinstance(record, Damaged) else received_time(record)
            for partition in self._partitions.values()
            for offset, frame in islice(partition.unconsumed.items(), 1)
            for record in (_decode(frame, partition.topic, partition.shard, offset),)
        ]
        return min(first, default=None)

    async def purge(self) -> None:
        """Remove events older than their retention; consumed records are already removed."""
        oldest = datetime.now(UTC) - self._settings.events_retention
        recent = {
            queue_id: [(time, frame) for time, frame in events if time >= oldest]
            for queue_id, events in self._events.items()
        }
        self._events = {queue_id: events for queue_id, events in recent.items() if events}

    # --- Appender

    async def append(self, record: Record) -> None:
        self.write([record])

    async def open_tenant(self, _tenant: str, /) -> None:
        """One log for all tenants."""

    def condition(self, _tenant: str = "", /) -> Condition:
        if self._failure is not None:
            return Down(self._failure)
        waiting = self._count_unconsumed(ACCEPTED)
        if waiting >= self._settings.max_unrouted_messages:
            return Full(f"{waiting} messages wait to be routed")
        return Usable()

    def worker_condition(self) -> Condition:
        return self.condition()

    def warnings(self) -> Sequence[str]:
        return ()

    async def reload(self) -> None:
        """There are no files to reload."""

    # --- RouterLog, DeliveryLog

    async def own_router_shards(
        self, process: RouterShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        await self._router_ownership.run(
            lambda: self.counts.by_queue_id, lambda number: _MemoryRouterShard(self, number), process, stop, on_ready
        )

    async def own_delivery_shards(
        self, process: DeliveryShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        await self._delivery_ownership.run(
            lambda: self.counts.of_dispatched,
            lambda number: _MemoryDeliveryShard(self, number),
            process,
            stop,
            on_ready,
        )

    # --- TopicFollower

    def follow(self, topic: Topic, /) -> AsyncIterator[Sequence[Any]]:
        return self._followers.follow(topic, partial(self._read_compacted_frames, topic))

    async def _read_compacted_frames(self, topic: Topic) -> Sequence[KeyedFrame]:
        return [
            KeyedFrame(shard, key, frame)
            for shard in range(self.counts.of(topic))
            for key, frame in self._compacted[topic.name, shard].items()
        ]

    # --- HistoryLog

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event | Damaged]:
        for _, frame in list(self._events.get(queue_id, ())):
            yield _decode(frame, EVENTS, 0, None, queue_id)

    async def queue_entries(self, queue_id: QueueId | None = None) -> AsyncIterator[QueueEntry]:
        for shard in range(self.counts.by_queue_id):
            for entry in self.queue_entries_of_shard(shard):
                if not isinstance(entry, Damaged) and queue_id in (None, entry.delivery.message.queue_id):
                    yield entry

    async def summarize_queue(self, summary: QueueSummary) -> None:
        for shard in range(self.counts.by_queue_id):
            for key, frame in self._compacted[QUEUE.name, shard].items():
                try:
                    summary.add(frame)
                except UnknownVersion as reason:
                    raise _unreadable(QUEUE, shard, f"key {key}", reason) from None

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        records = [
            _decode(frame, ACCEPTED, partition.shard, offset)
            for (topic, _), partition in self._partitions.items()
            if topic == ACCEPTED.name
            for offset, frame in partition.unconsumed.items()
        ]
        return [record for record in records if not isinstance(record, Damaged) and record.message.queue_id == queue_id]

    async def backlog(self) -> Backlog:
        return Backlog.of(self._count_unconsumed)

    # --- for the shards

    def partition(self, topic: Topic, shard: int) -> _Partition[Any]:
        return self._partitions[topic.name, shard]

    def append_frame(self, topic: Topic, shard: int, frame: bytes) -> None:
        self._offset += 1
        self.partition(topic, shard).append(self._offset, frame)

    def write(self, records: Sequence[Record], consumed: Sequence[Entry[Any]] = ()) -> None:
        """Write everything, or nothing when a record cannot be encoded or the log fails."""
        if self._failure is not None:
            raise LogUnavailable(self._failure)
        for record, frame in [(record, encode(record)) for record in records]:
            self._offset += 1
            topic, shard, key = self._topics.place(record, self.counts)
            if topic.compacted:
                self._followers.on_written(topic, [KeyedFrame(shard, key, frame)])
            if frame is None:
                self._compacted[topic.name, shard].pop(key, None)
            elif topic.compacted:
                self._compacted[topic.name, shard][key] = frame
            elif isinstance(record, Event):
                self._events.setdefault(record.queue_id, []).append((record.time, frame))
            else:
                self.partition(topic, shard).append(self._offset, frame)
        for entry in consumed:
            self._partitions[entry.topic, entry.shard].unconsumed.pop(entry.offset, None)
        self.notify()

    def queue_entries_of_shard(self, shard: int) -> list[QueueEntry | Damaged]:
        return [_decode_queue_entry(shard, key, frame) for key, frame in self._compacted[QUEUE.name, shard].items()]

    def remove_queue_keys(self, shard: int, raw_keys: Sequence[bytes]) -> None:
        if self._failure is not None:
            raise LogUnavailable(self._failure)
        for raw_key in raw_keys:
            self._compacted[QUEUE.name, shard].pop(raw_key.decode("utf-8", "surrogateescape"), None)

    def open_dispatches(self, *topics: Topic) -> list[tuple[str, int, int, bytes]]:
        """Topic, shard, offset and frame of the unconsumed records of these topics."""
        return [
            (topic.name, shard, offset, frame)
            for topic in topics
            for shard in range(self.counts.of(topic))
            for offset, frame in self.partition(topic, shard).unconsumed.items()
        ]

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, deadline: float | None) -> None:
        """Return after a write or a revocation, or at the loop time `deadline`."""
        await is_set_within(self._changed, None if deadline is None else deadline - asyncio.get_running_loop().time())

    def _count_unconsumed(self, topic: Topic) -> int:
        return sum(len(p.unconsumed) for (name, _), p in self._partitions.items() if name == topic.name)


class _MemoryRouterShard:
    def __init__(self, log: MemoryLog, number: int) -> None:
        self._log = log
        self.number = number
        self._is_lost = self._is_closed = False
        self._inputs = [log.partition(ATTEMPTED, number), log.partition(ACCEPTED, number)]
        for partition in self._inputs:
            partition.rewind()

    def revoke(self) -> None:
        self._is_lost = True
        self._log.notify()

    def close(self) -> None:
        self._is_closed = True

    def owns(self, queue_id: QueueId) -> bool:
        return shard_of_message(queue_id, self._log.counts) == self.number

    async def find_dispatches(self, delivery_ids: Collection[DeliveryId]) -> Mapping[DeliveryId, FoundDispatch]:
        reported = {find_id(frame) for *_, frame in self._log.open_dispatches(ATTEMPTED)}
        found = {each: FoundDispatch(None, is_open=each in reported) for each in delivery_ids}
        for _, shard, offset, frame in self._log.open_dispatches(DISPATCHED):
            record = _decode(frame, DISPATCHED, shard, offset)
            if not isinstance(record, Damaged) and record.delivery.id in found:
                found[record.delivery.id] = FoundDispatch(record, is_open=True)
        return found

    def history(self, queue_id: QueueId) -> AsyncIterator[Event | Damaged]:
        return self._log.history(queue_id)

    async def lost_deliveries(
        self, active: Collection[DeliveryId], damaged: Sequence[Entry[Damaged]]
    ) -> Collection[DeliveryId]:
        places = {(entry.topic, entry.shard, entry.offset) for entry in damaged}
        records = self._log.open_dispatches(DISPATCHED, ATTEMPTED)
        named = {find_id(frame) for *place, frame in records if tuple(place) not in places}
        if not damaged and "" in named:
            return ()  # perhaps theirs, which will be read
        return [delivery_id for delivery_id in active if delivery_id not in named]

    async def replay(self) -> AsyncIterator[Sequence[QueueEntry | Damaged]]:
        entries = iter(self._log.queue_entries_of_shard(self.number))
        while batch := list(islice(entries, _REPLAY_BATCH)):
            yield batch

    async def remove_keys(self, raw_keys: Sequence[bytes]) -> None:
        await asyncio.sleep(0)
        if self._is_closed:
            raise ShardLost
        self._log.remove_queue_keys(self.number, raw_keys)

    async def read(self, limit: int, wait: timedelta) -> Sequence[Input]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait.total_seconds()
        while not self._is_lost:
            entries: list[Input] = []
            for partition in self._inputs:
                entries += partition.read(limit - len(entries))
            if entries or loop.time() >= deadline:
                return entries
            await self._log.wait_for_change(deadline)
        raise ShardLost

    async def commit(self, outputs: Sequence[Record], consumed: Sequence[Input]) -> None:
        await asyncio.sleep(0)
        if self._is_closed:
            raise ShardLost
        self._log.write(outputs, consumed)

    async def rewind(self) -> None:
        if not self._is_closed:
            for partition in self._inputs:
                partition.rewind()


class _MemoryDeliveryShard:
    def __init__(self, log: MemoryLog, number: int) -> None:
        self._log = log
        self.number = number
        self.lost = asyncio.Event()
        self._is_closed = False
        self._input: _Partition[Dispatched] = log.partition(DISPATCHED, number)
        self._input.rewind()

    def revoke(self) -> None:
        self.lost.set()
        self._log.notify()

    def close(self) -> None:
        self._is_closed = True

    async def read(self, limit: int, wait: timedelta | None = None) -> Sequence[Entry[Dispatched] | Entry[Damaged]]:
        loop = asyncio.get_running_loop()
        deadline = None if wait is None else loop.time() + wait.total_seconds()
        while not self.lost.is_set():
            entries = self._input.read(limit)
            if entries or (deadline is not None and loop.time() >= deadline):
                return entries
            await self._log.wait_for_change(deadline)
        raise ShardLost

    async def finish(self, entry: Entry[Dispatched] | Entry[Damaged], attempted: Attempted | Damaged) -> None:
        if self._is_closed:
            raise ShardLost
        if isinstance(attempted, Damaged):
            self._log.write([], [entry])
            for shard in report_shards(attempted, self._log.counts):
                self._log.append_frame(ATTEMPTED, shard, attempted.frame)
            self._log.notify()
        else:
            self._log.write([attempted], [entry])


def _decode(frame: bytes, topic: Topic, shard: int, offset: int | None, key: str = "") -> Any:
    """The record, or Damaged."""
    try:
        return decode(frame, topic.record)
    except UnknownVersion as reason:
        raise _unreadable(topic, shard, f"offset {offset}" if offset else f"key {key}", reason) from None
    except FrameError as reason:
        return Damaged(topic.name, shard, offset, key or find_id(frame), frame, str(reason))


def _decode_queue_entry(shard: int, key: str, frame: bytes) -> QueueEntry | Damaged:
    try:
        return decode_queue_entry(shard, key.encode("utf-8", "surrogateescape"), frame)
    except UnknownVersion as reason:
        raise _unreadable(QUEUE, shard, f"key {key}", reason) from None


def _unreadable(topic: Topic, shard: int, position: str, reason: FrameError) -> LogUnusable:
    return LogUnusable(f"in-memory log: {topic.name}, shard {shard}, {position}: {reason}")
