"""Read-only queries of the Kafka log: history, queue entries, unrouted messages, backlog.

A history is read from the timestamp of its queue id, in one shard; queue entries are the current values of the
compacted `queue`. Backlogs are counted in offsets, so they include unread transaction markers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import cast

from aiokafka import ConsumerRecord, TopicPartition

from mail.log import UNKNOWN_TIME, Backlog, LogUnavailable, LogUnusable
from mail.log.codec import UnknownVersion
from mail.log.damaged import Damaged
from mail.log.kafka.access import Access, make_access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.committed_offset import CommittedOffset, OffsetMetadataError, OffsetTracker
from mail.log.kafka.decode import (
    decode_queue_entry,
    decode_record,
    read_compacted,
    read_compacted_partitions,
    unreadable_queue_entry,
)
from mail.log.kafka.diagnose import explain_failure, require_broker
from mail.log.kafka.partition_reader import PartitionReader
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.kafka.topics import shard_counts_of
from mail.log.queue_summary import QueueSummary
from mail.log.topics import ACCEPTED, DELIVERY, EVENTS, QUEUE, ROUTER, ShardCounts, Topic, shard_of_message
from mail.message import QueueId, queue_id_time
from mail.record import Accepted, Event, QueueEntry, received_time
from mail.settings import LogSettings

CLOCK_SKEW_MAX = timedelta(minutes=5)  # between the ingress that assigned a queue id and the brokers
_READ_LIMIT = 1000
_YIELD_INTERVAL = 2000  # entries added to a summary between two yields to the event loop


class KafkaHistoryReader:
    """HistoryLog on a `ClusterInfo`. Raises LogUnavailable when the brokers do not answer."""

    def __init__(
        self, access: Access, cluster_info: ClusterInfo, counts: ShardCounts, oldest_event: datetime | None = None
    ) -> None:
        """`oldest_event`: earlier events are past their retention and hidden."""
        self._access = access
        self._cluster_info = cluster_info
        self._counts = counts
        self._oldest_event = oldest_event

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event | Damaged]:
        tp = self._access.partition(EVENTS, shard_of_message(queue_id, self._counts))
        start_time = queue_id_time(queue_id) - CLOCK_SKEW_MAX
        start = await self._cluster_info.offset_for_time(tp, max(0, int(start_time.timestamp() * 1000)))
        if start is None:
            return
        async for record in self._records_of_key(tp, start, queue_id):
            event = decode_record(self._access, record)
            if isinstance(event, Damaged) or self._oldest_event is None or event.time >= self._oldest_event:
                yield event

    async def queue_entries(self, queue_id: QueueId | None = None) -> AsyncIterator[QueueEntry]:
        """For one message, only its shard is read and only its records are decoded."""
        shards = range(self._counts.by_queue_id) if queue_id is None else (shard_of_message(queue_id, self._counts),)
        for shard in shards:
            async for entry in self.queue_entries_of_shard(shard, queue_id):
                if not isinstance(entry, Damaged):
                    yield entry

    async def queue_entries_of_shard(
        self, shard: int, queue_id: QueueId | None = None
    ) -> AsyncIterator[QueueEntry | Damaged]:
        tp = self._access.partition(QUEUE, shard)
        prefix = b"" if queue_id is None else queue_id.encode()
        for key, frame in (await read_compacted(self._access, tp, prefix)).items():
            yield decode_queue_entry(self._access, tp, key, frame)

    async def summarize_queue(self, summary: QueueSummary) -> None:
        async for tp, frames in read_compacted_partitions(self._access, self._partitions(QUEUE)):
            for number, (key, frame) in enumerate(frames.items(), 1):
                if number % _YIELD_INTERVAL == 0:
                    await asyncio.sleep(0)
                try:
                    summary.add(frame)
                except UnknownVersion as reason:
                    raise unreadable_queue_entry(self._access, tp, key, reason) from None

    async def oldest_unconsumed(self) -> datetime | None:
        records = [decode_record(self._access, record) for record in await self.first_unconsumed()]
        times = (
            UNKNOWN_TIME if isinstance(record, Damaged) else received_time(cast("Accepted", record))
            for record in records
        )
        return min(times, default=None)

    async def first_unconsumed(self) -> Sequence[ConsumerRecord[bytes, bytes]]:
        """The first unconsumed record of each partition that has one."""
        committed = await self._committed_offsets()
        beginnings = await self._cluster_info.beginning_offsets(self._partitions(*self._access.topics.consumed))
        ends = await self._cluster_info.end_offsets(beginnings)
        starts = {tp: committed[tp].offset if tp in committed else offset for tp, offset in beginnings.items()}
        unread = {tp: offset for tp, offset in starts.items() if offset < ends[tp]}
        records: list[ConsumerRecord[bytes, bytes]] = []
        reader = PartitionReader(self._access, list(unread))
        try:
            if unread:
                await reader.open(unread)
            deadline = asyncio.get_running_loop().time() + TIMEOUTS.query_seconds
            while any(reader.position(tp) < ends[tp] for tp in unread):
                for tp in list(unread):
                    batch = await reader.read(_READ_LIMIT, 0.1, [tp])
                    first = next((record for record in batch if record.value is not None), None)
                    if first is not None:
                        records.append(first)
                        del unread[tp]
                if asyncio.get_running_loop().time() > deadline:
                    raise LogUnavailable(f"{self._access.url}: unconsumed records cannot be read")
        finally:
            await reader.close()
        return records

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        tp = self._access.partition(ACCEPTED, shard_of_message(queue_id, self._counts))
        committed = await self._cluster_info.committed_offsets(self._access.group(ACCEPTED.consumer), [tp])
        start = committed[tp].offset if tp in committed else (await self._cluster_info.beginning_offsets([tp]))[tp]
        records = [decode_record(self._access, record) async for record in self._records_of_key(tp, start, queue_id)]
        return [record for record in records if not isinstance(record, Damaged)]

    async def backlog(self) -> Backlog:
        committed = await self._committed_offsets()
        partitions = self._partitions(*self._access.topics.consumed)
        ends = await self._cluster_info.end_offsets(partitions)
        beginnings = await self._cluster_info.beginning_offsets([tp for tp in partitions if tp not in committed])

        def count(topic: Topic) -> int:
            return sum(
                _count_unconsumed(ends[tp], committed.get(tp), beginnings.get(tp, 0)) for tp in self._partitions(topic)
            )

        return Backlog.of(count)

    async def _committed_offsets(self) -> Mapping[TopicPartition, CommittedOffset]:
        committed: dict[TopicPartition, CommittedOffset] = {}
        for role in (ROUTER, DELIVERY):
            group, partitions = self._access.group(role), self._partitions(*self._access.topics.consumed_by(role))
            committed |= await self._cluster_info.committed_offsets(group, partitions)
        return committed

    async def _records_of_key(
        self, tp: TopicPartition, start: int, queue_id: QueueId
    ) -> AsyncIterator[ConsumerRecord[bytes, bytes]]:
        """The records of one key from `start` to the current end."""
        key = queue_id.encode()
        reader = PartitionReader(self._access, [tp])
        try:
            await reader.open({tp: start})
            async for records in reader.read_to_end(TIMEOUTS.query_seconds):
                for record in records:
                    if record.key == key and record.value is not None:
                        yield record
        finally:
            await reader.close()

    def _partitions(self, *topics: Topic) -> list[TopicPartition]:
        return [self._access.partition(topic, shard) for topic in topics for shard in range(self._counts.of(topic))]


def _count_unconsumed(end: int, committed: CommittedOffset | None, beginning: int) -> int:
    if committed is None:
        return max(0, end - beginning)
    try:
        offsets = OffsetTracker.from_committed(committed)
    except OffsetMetadataError as reason:
        raise LogUnusable(f"a committed offset cannot be read: {reason}") from None
    return offsets.gap_count + max(0, end - offsets.position)


class HistoryQueries:
    """HistoryLog that opens a reader for each query."""

    def history_reader(self) -> AbstractAsyncContextManager[KafkaHistoryReader]:
        raise NotImplementedError

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event | Damaged]:
        async with self.history_reader() as reader:
            async for event in reader.history(queue_id):
                yield event

    async def queue_entries(self, queue_id: QueueId | None = None) -> AsyncIterator[QueueEntry]:
        async with self.history_reader() as reader:
            async for entry in reader.queue_entries(queue_id):
                yield entry

    async def summarize_queue(self, summary: QueueSummary) -> None:
        async with self.history_reader() as reader:
            await reader.summarize_queue(summary)

    async def oldest_unconsumed(self) -> datetime | None:
        async with self.history_reader() as reader:
            return await reader.oldest_unconsumed()

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        async with self.history_reader() as reader:
            return await reader.unrouted_messages(queue_id)

    async def backlog(self) -> Backlog:
        async with self.history_reader() as reader:
            return await reader.backlog()


class KafkaHistory(HistoryQueries):
    """HistoryLog of a command: each query connects and disconnects. Raises LogUnusable when it cannot connect."""

    def __init__(self, settings: LogSettings, tenant: str = "") -> None:
        """Raises LogUnusable, ValueError as KafkaLog does."""
        self._access = make_access(settings, tenant)
        self._settings = settings

    @asynccontextmanager
    async def history_reader(self) -> AsyncIterator[KafkaHistoryReader]:
        async with ClusterInfo(self._access) as cluster_info:
            await require_broker(self._access)
            try:
                topic_states = await cluster_info.topics(with_config=False)
            except LogUnavailable as error:
                raise LogUnusable(await explain_failure(self._access, error)) from None
            counts = shard_counts_of(topic_states, self._access, self._settings)
            yield KafkaHistoryReader(self._access, cluster_info, counts)
