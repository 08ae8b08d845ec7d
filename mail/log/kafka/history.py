"""Read-only queries of the Kafka log: history, pending deliveries, unrouted messages, backlog.

A history is read from the timestamp of its queue id, in one shard; pending deliveries are the current values of the
compacted `queue`. Backlogs are counted in offsets, so they include unread transaction markers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import cast

from aiokafka import ConsumerRecord, TopicPartition

from mail.log import Backlog, LogUnavailable, LogUnusable
from mail.log.kafka.access import Access, make_access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.committed_offset import CommittedOffset, OffsetMetadataError, OffsetTracker
from mail.log.kafka.decode import decode_pending, decode_record, read_compacted
from mail.log.kafka.diagnose import explain_failure, require_broker
from mail.log.kafka.partition_reader import PartitionReader
from mail.log.kafka.topics import shard_counts_of
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, EVENTS, QUEUE, ShardCounts, Topic, shard_of_message
from mail.message import QueueId, queue_id_time
from mail.record import Accepted, Event, Pending, received_time
from mail.settings import LogSettings

ROUTER, DELIVERY = "router", "delivery"  # roles whose groups commit offsets

CLOCK_SKEW_MAX = timedelta(minutes=5)  # between the ingress that assigned a queue id and the brokers
_SILENCE_SECONDS = 15.0
_READ_LIMIT = 1000


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

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        at = self._access.partition(EVENTS, shard_of_message(queue_id, self._counts))
        since = queue_id_time(queue_id) - CLOCK_SKEW_MAX
        begin = await self._cluster_info.offset_for_time(at, max(0, int(since.timestamp() * 1000)))
        if begin is None:
            return
        async for record in self._records_of_key(at, begin, queue_id):
            event = cast("Event", decode_record(self._access, record))
            if self._oldest_event is None or event.time >= self._oldest_event:
                yield event

    async def pending_deliveries(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        """For one message, only its shard is read and only its records are decoded."""
        every = range(self._counts.by_queue_id)
        for shard in every if queue_id is None else [shard_of_message(queue_id, self._counts)]:
            async for pending in self.pending_of_shard(shard, queue_id):
                yield pending

    async def pending_of_shard(self, shard: int, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        at = self._access.partition(QUEUE, shard)
        start = b"" if queue_id is None else queue_id.encode()
        for key, frame in (await read_compacted(self._access, at, start)).items():
            yield decode_pending(self._access, at, key, frame)

    async def oldest_unconsumed(self) -> datetime | None:
        first = await self.first_unconsumed()
        return min((received_time(cast("Accepted", decode_record(self._access, each))) for each in first), default=None)

    async def first_unconsumed(self) -> Sequence[ConsumerRecord[bytes, bytes]]:
        """The first unconsumed record of each partition that has one."""
        first = {
            at: committed[at].offset if at in committed else begin
            for role, topics in ((ROUTER, (ACCEPTED, ATTEMPTED)), (DELIVERY, (DISPATCHED,)))
            for committed in [
                await self._cluster_info.committed_offsets(self._access.group(role), self._partitions(topics))
            ]
            for at, begin in (await self._cluster_info.beginning_offsets(self._partitions(topics))).items()
        }
        ends = await self._cluster_info.end_offsets(first)
        waiting = {at: offset for at, offset in first.items() if offset < ends[at]}
        records: list[ConsumerRecord[bytes, bytes]] = []
        reader = PartitionReader(self._access, list(waiting))
        try:
            if waiting:
                await reader.open(waiting)
            until = asyncio.get_running_loop().time() + _SILENCE_SECONDS
            while any(reader.position(at) < ends[at] for at in waiting):
                for at in list(waiting):
                    found = [record for record in await reader.read(_READ_LIMIT, 0.1, [at]) if record.value is not None]
                    if found and waiting.pop(at, None) is not None:
                        records.append(found[0])
                if asyncio.get_running_loop().time() > until:
                    raise LogUnavailable(f"{self._access.url}: unconsumed records cannot be read")
        finally:
            await reader.close()
        return records

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        at = self._access.partition(ACCEPTED, shard_of_message(queue_id, self._counts))
        committed = await self._cluster_info.committed_offsets(self._access.group(ROUTER), [at])
        begin = committed[at].offset if at in committed else (await self._cluster_info.beginning_offsets([at]))[at]
        return [
            cast("Accepted", decode_record(self._access, record))
            async for record in self._records_of_key(at, begin, queue_id)
        ]

    async def backlog(self) -> Backlog:
        router = await self._cluster_info.committed_offsets(
            self._access.group(ROUTER), self._partitions((ACCEPTED, ATTEMPTED))
        )
        delivery = await self._cluster_info.committed_offsets(
            self._access.group(DELIVERY), self._partitions((DISPATCHED,))
        )
        sums = []
        for topic, committed in ((ACCEPTED, router), (DISPATCHED, delivery), (ATTEMPTED, router)):
            partitions = self._partitions((topic,))
            ends = await self._cluster_info.end_offsets(partitions)
            uncommitted = [at for at in partitions if at not in committed]
            beginnings = await self._cluster_info.beginning_offsets(uncommitted) if uncommitted else {}
            sums.append(
                sum(_count_unconsumed(end, committed.get(at), beginnings.get(at, 0)) for at, end in ends.items())
            )
        return Backlog(*sums)

    async def _records_of_key(
        self, at: TopicPartition, begin: int, queue_id: QueueId
    ) -> AsyncIterator[ConsumerRecord[bytes, bytes]]:
        """The records of one key from `begin` to the current end."""
        key = queue_id.encode()
        reader = PartitionReader(self._access, [at])
        try:
            await reader.open({at: begin})
            async for record in reader.read_to_end(_SILENCE_SECONDS):
                if record.key == key and record.value is not None:
                    yield record
        finally:
            await reader.close()

    def _partitions(self, topics: Sequence[Topic]) -> list[TopicPartition]:
        return [self._access.partition(topic, shard) for topic in topics for shard in range(self._counts.of(topic))]


def _count_unconsumed(end: int, committed: CommittedOffset | None, begin: int) -> int:
    if committed is None:
        return max(0, end - begin)
    try:
        offsets = OffsetTracker.from_committed(committed)
    except OffsetMetadataError as reason:
        raise LogUnusable(f"a committed offset cannot be read: {reason}; use the newer eilpost") from None
    return offsets.gap_count + max(0, end - offsets.position)


class KafkaHistory:
    """HistoryLog of a command: each query connects and disconnects. Raises LogUnusable when it cannot connect."""

    def __init__(self, settings: LogSettings, tenant: str = "") -> None:
        """Raises LogUnusable, ValueError as KafkaLog does."""
        self._access = make_access(settings, tenant)
        self._settings = settings

    async def _history_reader(self, cluster_info: ClusterInfo) -> KafkaHistoryReader:
        await require_broker(self._access)
        try:
            topic_states = await cluster_info.topics(with_config=False)
        except LogUnavailable as error:
            raise LogUnusable(await explain_failure(self._access, error)) from None
        return KafkaHistoryReader(
            self._access, cluster_info, shard_counts_of(topic_states, self._access, self._settings)
        )

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        async with ClusterInfo(self._access) as cluster_info:
            async for event in (await self._history_reader(cluster_info)).history(queue_id):
                yield event

    async def pending_deliveries(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        async with ClusterInfo(self._access) as cluster_info:
            async for pending in (await self._history_reader(cluster_info)).pending_deliveries(queue_id):
                yield pending

    async def oldest_unconsumed(self) -> datetime | None:
        async with ClusterInfo(self._access) as cluster_info:
            return await (await self._history_reader(cluster_info)).oldest_unconsumed()

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        async with ClusterInfo(self._access) as cluster_info:
            return await (await self._history_reader(cluster_info)).unrouted_messages(queue_id)

    async def backlog(self) -> Backlog:
        async with ClusterInfo(self._access) as cluster_info:
            return await (await self._history_reader(cluster_info)).backlog()
