"""Router shard on Kafka: reads its inputs, and commits outputs and input offsets in one transaction.

Opening takes the transactional id, which fences every earlier owner and ends its open transaction, then fetches the
committed offsets and reads from there. Replay reads the shard's `queue` partition to its end and keeps the last record
of each key. Failures raise LogUnavailable, and `rewind` opens the shard again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice

from aiokafka import ConsumerRecord, TopicPartition

from mail.log import Entry, FoundDispatch, Input, LogUnavailable, LogUnusable, ShardLost
from mail.log.damaged import Damaged
from mail.log.kafka.access import Access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.decode import (
    decode_queue_entry,
    decode_record,
    find_last_dispatches,
    read_compacted,
    read_older_entries,
)
from mail.log.kafka.history import KafkaHistoryReader
from mail.log.kafka.partition_reader import PartitionReader
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.kafka.transactional_producer import Batches, TransactionalProducer, batch_by_partition
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, QUEUE, ROUTER, ShardCounts, shard_of_message
from mail.message import DeliveryId, QueueId
from mail.record import Event, QueueEntry, Record
from mail.tasks import is_set_within

_REPLAY_BATCH = 500
_BUSY_INPUTS = 4  # inputs per commit above which commits are spaced out


class KafkaRouterShard:
    """`on_routed` gets the number of accepted messages in a commit. `may_open`: whether the group still counts this
    process as a member.
    """

    def __init__(
        self,
        access: Access,
        number: int,
        cluster_info: ClusterInfo,
        commit_seconds: float,
        *,
        counts: Callable[[], ShardCounts],
        on_routed: Callable[[int], None],
        may_open: Callable[[], bool],
    ) -> None:
        self.number = number
        self._access = access
        self._counts = counts
        self._cluster_info = cluster_info
        self._group = access.group(ROUTER)
        self._producer = TransactionalProducer(access, self._group, number, commit_seconds)
        self._on_routed = on_routed
        self._may_open = may_open
        self._attempted = access.partition(ATTEMPTED, number)
        self._accepted = access.partition(ACCEPTED, number)
        self._reader = PartitionReader(access, [self._attempted, self._accepted])
        self._read_count = 0
        self._read_positions: dict[TopicPartition, int] = {}  # after the last returned input: what may be committed
        self._next_read_at = 0.0
        self._is_open = False
        self._has_committed = False  # since the transactional id was taken
        self._needs_rewind = False  # a commit failed: only `rewind` opens the shard again
        self.lost = asyncio.Event()
        self.outage: str | None = None  # why commits fail

    @property
    def authorization_error(self) -> str | None:
        """Why the brokers' authorizer refuses reads."""
        return self._reader.authorization_error

    def revoke(self) -> None:
        self.lost.set()

    def discard(self) -> None:
        self.lost.set()
        self._is_open = False  # inputs that were read are not committed

    async def close(self) -> None:
        self.lost.set()
        self._is_open = False
        await self._reader.close()
        await self._producer.close()

    async def _open(self) -> None:
        if self._is_open:
            return
        try:
            await self._open_shard()
        except LogUnavailable as error:
            self.outage = str(error)
            raise
        self.outage = None

    async def _open_shard(self) -> None:
        if self.lost.is_set():
            raise ShardLost  # otherwise `process` would retry
        if self._needs_rewind:
            raise LogUnavailable(f"{self._accepted.topic}, shard {self.number}: the last commit failed")
        if not self._may_open():
            # The process paused and has not rejoined yet: opening now would fence the owner that the group has chosen.
            raise LogUnavailable(f"{self._accepted.topic}, shard {self.number}: rejoining the group")
        await self._producer.open()
        partitions = (self._attempted, self._accepted)
        committed = await self._cluster_info.committed_offsets(self._group, partitions)
        await self._reader.open({tp: committed[tp].offset if tp in committed else None for tp in partitions})
        self._read_positions = {}
        self._read_count = 0
        self._has_committed = False
        self._is_open = True

    async def rewind(self) -> None:
        if self.lost.is_set():
            return  # the next owner opens it
        self._is_open = self._needs_rewind = False
        await self._open()

    def owns(self, queue_id: QueueId) -> bool:
        return shard_of_message(queue_id, self._counts()) == self.number

    async def find_dispatches(self, delivery_ids: Collection[DeliveryId]) -> Mapping[DeliveryId, FoundDispatch]:
        partitions = [self._access.partition(DISPATCHED, number) for number in range(self._counts().of_dispatched)]
        keys = {delivery_id.encode() for delivery_id in delivery_ids}
        found = await find_last_dispatches(self._access, partitions, keys)
        return {each: FoundDispatch(found.get(each), is_open=False) for each in delivery_ids}

    def history(self, queue_id: QueueId) -> AsyncIterator[Event | Damaged]:
        return KafkaHistoryReader(self._access, self._cluster_info, self._counts()).history(queue_id)

    async def lost_deliveries(
        self, active: Collection[DeliveryId], damaged: Sequence[Entry[Damaged]]
    ) -> Collection[DeliveryId]:
        keys = {entry.record.key for entry in damaged}  # every record has one
        return [delivery_id for delivery_id in active if delivery_id in keys]

    async def replay(self) -> AsyncIterator[Sequence[QueueEntry | Damaged]]:
        await self._open()
        if self._has_committed:
            # A commit returns once it cannot fail, but its records are visible only when its markers are written, some
            # milliseconds later. The next owner of the transactional id waits for that.
            await self._producer.open()
            self._has_committed = False
        partition = self._access.partition(QUEUE, self.number)
        frames = iter((await read_compacted(self._access, partition)).items())
        damaged: dict[bytes, Damaged] = {}
        while batch := list(islice(frames, _REPLAY_BATCH)):
            entries: list[QueueEntry] = []
            for key, frame in batch:
                entry = decode_queue_entry(self._access, partition, key, frame)
                if isinstance(entry, Damaged):
                    damaged[key] = entry
                else:
                    entries.append(entry)
            yield entries
            await asyncio.sleep(0)
        if damaged:
            older = await read_older_entries(self._access, partition, damaged)
            yield [replace(entry, previous=entry.previous or older.get(key)) for key, entry in damaged.items()]

    async def remove_keys(self, raw_keys: Sequence[bytes]) -> None:
        await self._open()
        partition = self._access.partition(QUEUE, self.number)
        await self._write({partition: [(raw_key, None) for raw_key in raw_keys]}, {})
        self._has_committed = True

    async def read(self, limit: int, wait: timedelta) -> Sequence[Input]:
        if self.lost.is_set():
            raise ShardLost
        await self._open()
        await self._wait_for_batch()
        # Attempts first: they free room.
        records = await self._reader.read(limit, 0.0, [self._attempted])
        if len(records) < limit:
            records += await self._reader.read(limit - len(records), 0.0, [self._accepted])
        if not records:
            if self._reader.is_behind:  # records exist: an empty result would be wrong
                records = await self._reader.read_until_lost(self.lost, limit, TIMEOUTS.router_arrival_seconds)
                if not records and self._reader.is_behind:
                    raise LogUnavailable(f"{self._accepted.topic}, shard {self.number}: existing records do not arrive")
            elif wait:
                records = await self._reader.read_until_lost(self.lost, limit, wait.total_seconds())
        inputs = self._decode(records)
        self._read_count += len(inputs)
        return inputs

    async def _wait_for_batch(self) -> None:
        """A transaction costs five round trips, whatever its size. So after a commit of several inputs the next one
        starts no sooner than `TIMEOUTS.router_batch_seconds` later; a shard with few inputs does not wait.
        """
        seconds = self._next_read_at - asyncio.get_running_loop().time()
        if seconds > 0:
            await is_set_within(self.lost, seconds)

    def _decode(self, records: Sequence[ConsumerRecord[bytes, bytes]]) -> list[Input]:
        """The inputs without probes. A record of a newer version is raised once no input precedes it in any topic."""
        inputs: list[Input] = []
        unreadable: dict[str, LogUnusable] = {}
        for record in records:
            if record.value is None or record.topic in unreadable:
                continue
            try:
                inputs.append(_decode_input(self._access, record))
            except LogUnusable as error:
                unreadable[record.topic] = error
                self._reader.seek(TopicPartition(record.topic, record.partition), record.offset)
        if unreadable and not inputs:
            raise next(iter(unreadable.values()))
        self._read_positions = {tp: self._reader.position(tp) for tp in (self._attempted, self._accepted)}
        return inputs

    async def commit(self, outputs: Sequence[Record], consumed: Sequence[Input]) -> None:
        await self._open()
        if len(consumed) != self._read_count:
            raise ValueError(f"{len(consumed)} inputs are to be committed, but {self._read_count} were read")
        topics = {self._access.prefix + entry.topic for entry in consumed}
        offsets = {tp: position for tp, position in self._read_positions.items() if tp.topic in topics}
        if not outputs and not offsets:
            return
        now = asyncio.get_running_loop().time()
        self._next_read_at = now + TIMEOUTS.router_batch_seconds if len(consumed) >= _BUSY_INPUTS else 0.0
        await self._write(batch_by_partition(outputs, self._counts(), self._access), offsets)
        self._read_count = 0
        self._has_committed = True
        self._on_routed(sum(entry.topic == ACCEPTED.name for entry in consumed))

    async def _write(self, batches: Batches, offsets: Mapping[TopicPartition, int]) -> None:
        try:
            await self._producer.commit(batches, offsets)
        except (LogUnavailable, ShardLost) as error:
            self._is_open, self._needs_rewind = False, True
            self.outage = str(error) if isinstance(error, LogUnavailable) else None
            raise


def _decode_input(access: Access, record: ConsumerRecord[bytes, bytes]) -> Input:
    topic = record.topic.removeprefix(access.prefix)
    return Entry(topic, record.partition, record.offset, decode_record(access, record))
