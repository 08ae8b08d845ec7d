"""Delivery shard on Kafka: reads dispatches in order, finishes them in any order.

`finish` appends the attempt and then records the dispatch as finished, never the other way round. `OffsetCommitter`
commits the offsets of all shards of a process, so that SIGKILL repeats only what was in flight. A closed shard finishes
nothing more, because its next owner has started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import structlog
from aiokafka import ConsumerRecord

from mail.log import Entry, LogUnavailable, LogUnusable, ShardLost
from mail.log.damaged import Damaged
from mail.log.kafka.access import Access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.committed_offset import CommittedOffset, OffsetMetadataError, OffsetTracker
from mail.log.kafka.decode import decode_record
from mail.log.kafka.partition_reader import PartitionReader, TopicRecreated
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.topics import DELIVERY, DISPATCHED
from mail.record import Attempted, Dispatched

logger = structlog.get_logger()


class KafkaDeliveryShard:
    """`append` makes an attempt durable; `on_finished` reports progress; `may_read`: whether more may start, which is
    not so while the group does not confirm the ownership.
    """

    def __init__(
        self,
        access: Access,
        number: int,
        cluster_info: ClusterInfo,
        *,
        append: Callable[[Attempted | Damaged], Awaitable[None]],
        on_finished: Callable[[], None],
        may_read: Callable[[], bool],
    ) -> None:
        self.number = number
        self.partition = access.partition(DISPATCHED, number)
        self._access = access
        self._cluster_info = cluster_info
        self._append = append
        self._on_finished = on_finished
        self._may_read = may_read
        self._reader = PartitionReader(access, [self.partition])
        self._offsets: OffsetTracker | None = None
        self.lost = asyncio.Event()
        self._closed = False

    @property
    def authorization_error(self) -> str | None:
        """Why the brokers' authorizer refuses reads."""
        return self._reader.authorization_error

    def revoke(self) -> None:
        self.lost.set()

    def discard(self) -> None:
        self.lost.set()
        self._offsets = None

    async def close(self) -> None:
        self.lost.set()
        self._closed = True
        await self._reader.close()

    def to_commit(self) -> CommittedOffset | None:
        """None before the shard was read."""
        return None if self._offsets is None else self._offsets.to_commit()

    async def _open(self) -> OffsetTracker:
        if self._offsets is not None:
            return self._offsets
        group = self._access.group(DELIVERY)
        committed = (await self._cluster_info.committed_offsets(group, [self.partition])).get(self.partition)
        try:
            offsets = OffsetTracker() if committed is None else OffsetTracker.from_committed(committed)
        except OffsetMetadataError as reason:
            raise LogUnusable(
                f"{self._access.url}: the committed offset of {self.partition.topic}, shard {self.number}, cannot be"
                f" read: {reason}"
            ) from None
        await self._reader.open({self.partition: None if committed is None else offsets.offset_to_commit})
        position = self._reader.position(self.partition)
        if committed is None or position < offsets.offset_to_commit:  # or the offset is that of a deleted topic
            offsets = OffsetTracker(position)
        self._offsets = offsets
        return offsets

    async def read(self, limit: int, wait: timedelta | None = None) -> Sequence[Entry[Dispatched] | Entry[Damaged]]:
        clock = asyncio.get_running_loop().time
        deadline = None if wait is None else clock() + wait.total_seconds()
        arrival_deadline = clock() + TIMEOUTS.delivery_arrival_seconds
        while True:
            if self.lost.is_set():
                raise ShardLost
            offsets = await self._open()
            if offsets.is_full or not self._may_read():
                await asyncio.sleep(TIMEOUTS.delivery_full_seconds)
                continue
            try:
                if not self._reader.is_open:  # it was stuck, and the first reopening failed
                    await self._reader.reopen({self.partition: offsets.position})
                start = self._reader.position(self.partition)
                seconds = TIMEOUTS.poll_seconds
                if deadline is not None and not self._reader.is_behind:
                    seconds = min(seconds, max(0.0, deadline - clock()))
                records = await self._reader.read_until_lost(self.lost, limit, seconds)
            except TopicRecreated as error:
                event = "topic recreated, shard restarts at its first record"
                logger.warning(event, shard=self.number, error=str(error))
                self.discard()
                raise ShardLost from None
            entries = self._decode(offsets, records)
            position = self._reader.position(self.partition)
            offsets.advance_to(position)
            if entries:
                return entries
            if deadline is None:
                continue
            if not self._reader.is_behind:
                if clock() >= deadline:
                    return ()
            elif position > start:
                arrival_deadline = clock() + TIMEOUTS.delivery_arrival_seconds
            elif clock() > arrival_deadline:  # records exist: an empty result would be wrong
                raise LogUnavailable(f"{self.partition.topic}, shard {self.number}: existing records do not arrive")

    def _decode(
        self, offsets: OffsetTracker, records: Sequence[ConsumerRecord[bytes, bytes]]
    ) -> list[Entry[Dispatched] | Entry[Damaged]]:
        """The unfinished entries. A record of a newer version is raised once it is the first."""
        entries: list[Entry[Dispatched] | Entry[Damaged]] = []
        for record in records:
            if record.value is None or offsets.is_finished(record.offset):
                continue
            try:
                dispatched = decode_record(self._access, record)
            except LogUnusable:
                self._reader.seek(self.partition, record.offset)
                if entries:
                    break
                raise
            entries.append(Entry(DISPATCHED.name, self.number, record.offset, dispatched))
            offsets.start(record.offset)
        return entries

    async def finish(self, entry: Entry[Dispatched] | Entry[Damaged], attempted: Attempted | Damaged) -> None:
        if self._closed or self._offsets is None:
            raise ShardLost
        await self._append(attempted)
        if self._closed or self._offsets is None:
            raise ShardLost  # the attempt is durable, but the offset is the next owner's: it repeats the attempt
        self._offsets.finish(entry.offset)
        self._on_finished()
