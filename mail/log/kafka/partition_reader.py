"""Partition reader: a read position per partition, and a watchdog for stuck aiokafka consumers.

It belongs to no group, so a rebalance does not discard fetched records and a slow shard does not delay another. It
reads committed records only. aiokafka can get stuck after brokers restarted, without an error (aiokafka issues 712 and
1154), so a reader without records asks the broker for the end offset and opens a new consumer if there are records.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from mail.log import LogNotAuthorized, LogUnavailable, ShardLost
from mail.log.kafka.access import CLIENT_ERRORS, Access, unavailable
from mail.log.kafka.aiokafka_compat.clients import load_topics, stop_or_abort
from mail.log.kafka.timeouts import TIMEOUTS
from mail.tasks import cancel_tasks

logger = structlog.get_logger()

FETCH_BYTES = 1 << 20  # prefetched per partition
FETCH_WAIT = timedelta(milliseconds=500)
_TRUNCATION_CHECKS = 4  # of a committed offset above the end offset, each with a new client
_READ_LIMIT = 2000


class TopicRecreated(LogUnavailable):
    """The topic was deleted and recreated with the same name: all known offsets are invalid."""


class PartitionReader:
    """The read position in some partitions. One task reads at a time."""

    def __init__(
        self, access: Access, partitions: Sequence[TopicPartition], *, fetch_wait: timedelta = FETCH_WAIT
    ) -> None:
        """`fetch_wait`: how long a broker holds a fetch of partitions that are at their end. aiokafka sends it the next
        one, also for other partitions, only after that.
        """
        self._access = access
        self._fetch_wait = fetch_wait
        self._partitions = tuple(partitions)
        self._consumer: AIOKafkaConsumer | None = None
        self._positions: dict[TopicPartition, int] = {}
        self.end_offsets_at_open: Mapping[TopicPartition, int] = {}  # after the last committed record, at `open`
        self._next_check_at = 0.0
        self._last_read_at: dict[TopicPartition, float] = {}  # time of the last record of each partition
        self._behind: Mapping[TopicPartition, int] = {}  # positions with unread records, at the last check
        self._is_stuck = False
        self.authorization_error: str | None = None  # by the brokers' authorizer
        self._check_task: asyncio.Task[None] | None = None
        self._beyond_end: dict[TopicPartition, tuple[float, int]] = {}  # first seen, number of checks

    async def open(self, positions: Mapping[TopicPartition, int | None]) -> None:
        """Start at these offsets, or at the first existing one (None). An offset that stays above the end offset also
        restarts at the first one, because the topic was recreated: a repeated delivery is better than a lost one.
        Raises LogUnavailable.
        """
        await self.close()
        consumer = self._access.consumer(
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_wait_ms=self._fetch_wait // timedelta(milliseconds=1),
            check_crcs=False,  # frames have their own checksum
        )
        try:
            async with asyncio.timeout(TIMEOUTS.read_seconds):
                await consumer.start()
                await load_topics(consumer, {tp.topic for tp in self._partitions})
                # Requested before the first fetch: a broker answers the requests of a connection in order, and a
                # waiting fetch would delay the answer by half a second.
                self.end_offsets_at_open = await consumer.end_offsets(list(self._partitions))
                valid = {
                    tp: offset for tp, offset in positions.items() if offset is not None and self._is_valid(tp, offset)
                }
                beginnings = await consumer.beginning_offsets([tp for tp in positions if tp not in valid])
                self._positions = valid | beginnings
                consumer.assign(list(self._partitions))
                for tp, offset in self._positions.items():
                    consumer.seek(tp, offset)
        except BaseException as error:
            await stop_or_abort(consumer, TIMEOUTS.close_seconds)
            if isinstance(error, CLIENT_ERRORS):
                raise unavailable(self._access.url, error, "Read") from None
            raise
        self._consumer = consumer
        self._is_stuck = False
        now = asyncio.get_running_loop().time()
        self._next_check_at = now + TIMEOUTS.stuck_seconds
        self._last_read_at = dict.fromkeys(self._partitions, now)

    async def reopen(self, positions: Mapping[TopicPartition, int]) -> None:
        """Continue at these offsets. Raises TopicRecreated where they no longer exist, LogUnavailable."""
        await self.open(positions)
        await self._refuse_recreated(positions, self._positions)

    async def _refuse_recreated(
        self, before: Mapping[TopicPartition, int], after: Mapping[TopicPartition, int]
    ) -> None:
        for tp, position in after.items():
            if position < before[tp]:
                await self.close()
                raise TopicRecreated(f"{self._access.url}: topic {tp.topic} was recreated while it was read")

    def _is_valid(self, tp: TopicPartition, offset: int) -> bool:
        """Whether the offset is not above the end offset. Raises LogUnavailable while that is uncertain."""
        if offset <= self.end_offsets_at_open[tp]:
            self._beyond_end.pop(tp, None)
            return True
        now = asyncio.get_running_loop().time()
        first_seen, checks = self._beyond_end.get(tp, (now, 0))
        self._beyond_end[tp] = first_seen, checks + 1
        if now - first_seen < TIMEOUTS.truncation_seconds or checks < _TRUNCATION_CHECKS:
            raise LogUnavailable(
                f"{self._access.url}: {tp.topic}, partition {tp.partition}, ends before its committed offset: the"
                " broker lags behind, or the topic was truncated or recreated"
            )
        logger.warning(
            "committed offset beyond the end, restarting at the first record", topic=tp.topic,
            partition=tp.partition, committed_offset=offset, end_offset=self.end_offsets_at_open[tp],
        )  # fmt: skip
        return False

    def position(self, partition: TopicPartition) -> int:
        """The next offset to read, after aborted and control records."""
        return self._positions[partition]

    @property
    def is_open(self) -> bool:
        return self._consumer is not None

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Continue at this offset."""
        assert self._consumer is not None
        self._consumer.seek(partition, offset)
        self._positions[partition] = offset

    @property
    def is_behind(self) -> bool:
        """Whether records that existed at `open` have not been read yet."""
        return any(self._positions[tp] < end for tp, end in self.end_offsets_at_open.items())

    async def read(
        self, limit: int, wait_seconds: float, partitions: Sequence[TopicPartition] = ()
    ) -> list[ConsumerRecord[bytes, bytes]]:
        """At most `limit` of the next records, in order within each partition. Raises LogUnavailable.

        There is no await after records left the consumer, so a cancelled caller loses none.
        """
        loop = asyncio.get_running_loop()
        # Checked per partition: one may be stuck while others return records.
        idle_seconds = loop.time() - min(self._last_read_at.values(), default=loop.time())
        if wait_seconds and idle_seconds >= TIMEOUTS.stuck_seconds and loop.time() >= self._next_check_at:
            self._next_check_at = loop.time() + TIMEOUTS.stuck_seconds
            if self._consumer is not None and (self._check_task is None or self._check_task.done()):
                # Concurrent with the reads: an unresponsive broker may answer late, and records may arrive before that.
                self._check_task = asyncio.create_task(self._check_stuck(), name="reader-check")
        if self._is_stuck:
            await self.reopen(dict(self._positions))
        consumer = self._consumer
        if consumer is None:
            raise LogUnavailable(f"{self._access.url}: the reader is not open")
        try:
            batches = await consumer.getmany(*partitions, timeout_ms=int(wait_seconds * 1000), max_records=limit)
            # The positions are known, so this returns at once.
            positions = {tp: await consumer.position(tp) for tp in partitions or self._partitions}
        except CLIENT_ERRORS as error:
            failure = unavailable(self._access.url, error, "Read")
            self.authorization_error = str(failure) if isinstance(failure, LogNotAuthorized) else None
            raise failure from None
        if batches or wait_seconds:  # a read without a wait may precede the first response
            self.authorization_error = None
        # aiokafka restarts at the first offset where the position does not exist.
        await self._refuse_recreated(self._positions, positions)
        self._positions |= positions
        self._last_read_at |= dict.fromkeys(batches, loop.time())
        return [record for records in batches.values() for record in records]

    async def read_to_end(self, timeout_seconds: float) -> AsyncIterator[Sequence[ConsumerRecord[bytes, bytes]]]:
        """The records that existed at `open`, some at a time, from the position on. Raises LogUnavailable after
        `timeout_seconds` without records.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while self.is_behind:
            records = await self.read(_READ_LIMIT, TIMEOUTS.read_wait_seconds)
            if records:
                deadline = loop.time() + timeout_seconds
            elif loop.time() > deadline:
                names = ", ".join(sorted({tp.topic for tp in self._partitions}))
                raise LogUnavailable(f"{self._access.url}: {names} cannot be read to the end")
            yield records

    async def read_until_lost(
        self, lost: asyncio.Event, limit: int, wait_seconds: float
    ) -> list[ConsumerRecord[bytes, bytes]]:
        """As `read`, but ends when the shard is lost. Raises ShardLost, LogUnavailable."""
        read_task = asyncio.ensure_future(self.read(limit, wait_seconds))
        lost_task = asyncio.ensure_future(lost.wait())
        try:
            await asyncio.wait({read_task, lost_task}, return_when=asyncio.FIRST_COMPLETED)
            if not read_task.done():
                raise ShardLost
            return read_task.result()
        finally:
            lost_task.cancel()
            if not read_task.done():
                await cancel_tasks(read_task)

    async def _check_stuck(self) -> None:
        """Check whether unread records exist. A partition is stuck when it is behind twice at the same position."""
        assert self._consumer is not None
        try:
            async with asyncio.timeout(TIMEOUTS.read_seconds):
                ends = await self._consumer.end_offsets(list(self._partitions))
        except CLIENT_ERRORS:
            return
        except Exception:  # boundary of the task: retried
            logger.exception("check for a stuck reader failed, retrying", partitions=len(self._partitions))
            return
        behind = {tp: self._positions[tp] for tp, end in ends.items() if end > self._positions[tp]}
        if any(self._behind.get(tp) == position for tp, position in behind.items()):
            end_offsets = {f"{tp.topic}/{tp.partition}": ends[tp] for tp in behind}
            logger.warning("reader is stuck, reopening", end_offsets=end_offsets)
            self._is_stuck = True
        elif behind:
            self._next_check_at = asyncio.get_running_loop().time() + TIMEOUTS.stuck_recheck_seconds
        self._behind = behind

    async def close(self) -> None:
        task, self._check_task = self._check_task, None
        await cancel_tasks(task)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_or_abort(consumer, TIMEOUTS.close_seconds)
