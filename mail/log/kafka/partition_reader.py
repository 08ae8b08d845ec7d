"""Partition reader: a read position per partition, and a watchdog for stuck aiokafka consumers.

It belongs to no group, so a rebalance does not discard fetched records and a slow shard does not delay another. It
reads committed records only. aiokafka can get stuck after brokers restarted, without an error (aiokafka issues 712 and
1154), so a reader without records asks the broker for the end offset and opens a new consumer if there are records.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from mail.log import LogNotAuthorized, LogUnavailable, ShardLost
from mail.log.kafka.access import CLIENT_ERRORS, Access, unavailable
from mail.log.kafka.uvloop_workaround import stop_or_abort

logger = structlog.get_logger()

FETCH_BYTES = 1 << 20  # prefetched per partition
_STUCK_SECONDS = 10.0  # without records, before the broker is asked
_RECHECK_SECONDS = 2.0
_CLOSE_SECONDS = 2.0
# A committed offset above the end offset: the topic was recreated or truncated, or the broker lags behind. The end
# offset is trusted after this time and this number of checks, each with a new client that may ask another broker.
_TRUNCATION_SECONDS, _TRUNCATION_CHECKS = 15.0, 4
_READ_LIMIT, _READ_WAIT_SECONDS = 2000, 0.2


class TopicRecreated(LogUnavailable):
    """The topic was deleted and recreated with the same name: all known offsets are invalid."""


class PartitionReader:
    """The read position in some partitions. One task reads at a time."""

    def __init__(self, access: Access, partitions: Sequence[TopicPartition]) -> None:
        self._access = access
        self._partitions = tuple(partitions)
        self._consumer: AIOKafkaConsumer | None = None
        self._positions: dict[TopicPartition, int] = {}
        self.end_offsets_at_open: Mapping[TopicPartition, int] = {}  # after the last committed record, at `open`
        self._next_check_at = 0.0
        self._last_read_at: dict[TopicPartition, float] = {}  # time of the last record of each partition
        self._behind: Mapping[TopicPartition, int] = {}
        self._is_stuck = False
        self.refused: str | None = None  # by the brokers' authorizer
        self._check_task: asyncio.Task[None] | None = None
        self._offsets_beyond_end: dict[TopicPartition, tuple[float, int]] = {}  # since when, and number of checks

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
            check_crcs=False,  # frames have their own checksum
        )
        try:
            async with asyncio.timeout(30):
                await consumer.start()
                # Otherwise the first request finds no leaders, and aiokafka sleeps for 0.1 s per topic.
                await consumer._client.set_topics({at.topic for at in self._partitions})
                # Requested before the first fetch: a broker answers the requests of a connection in order, and a
                # waiting fetch would delay the answer by half a second.
                self.end_offsets_at_open = await consumer.end_offsets(list(self._partitions))
                known = {
                    at: there for at, there in positions.items() if there is not None and self._is_valid(at, there)
                }
                beginnings = await consumer.beginning_offsets([at for at in positions if at not in known])
                self._positions = {at: known[at] if at in known else beginnings[at] for at in positions}
                consumer.assign(list(self._partitions))
                for at, offset in self._positions.items():
                    consumer.seek(at, offset)
        except CLIENT_ERRORS as error:
            await _close(consumer)
            raise unavailable(self._access.url, error, "Read") from None
        except BaseException:
            await _close(consumer)
            raise
        self._consumer = consumer
        self._is_stuck = False
        now = asyncio.get_running_loop().time()
        self._next_check_at = now + _STUCK_SECONDS
        self._last_read_at = dict.fromkeys(self._partitions, now)

    async def reopen(self, positions: Mapping[TopicPartition, int]) -> None:
        """Continue at these offsets. Raises TopicRecreated where they no longer exist, LogUnavailable."""
        await self.open(positions)
        await self._refuse_recreated(positions, self._positions)

    async def _refuse_recreated(self, was: Mapping[TopicPartition, int], now: Mapping[TopicPartition, int]) -> None:
        for at, position in now.items():
            if position < was[at]:
                await self.close()
                raise TopicRecreated(f"{self._access.url}: topic {at.topic} was recreated while it was read")

    def _is_valid(self, at: TopicPartition, offset: int) -> bool:
        """Whether the offset is not above the end offset. Raises LogUnavailable while that is uncertain."""
        if offset <= self.end_offsets_at_open[at]:
            self._offsets_beyond_end.pop(at, None)
            return True
        now = asyncio.get_running_loop().time()
        since, checks = self._offsets_beyond_end.get(at, (now, 0))
        self._offsets_beyond_end[at] = since, checks + 1
        if now - since < _TRUNCATION_SECONDS or checks < _TRUNCATION_CHECKS:
            raise LogUnavailable(
                f"{self._access.url}: {at.topic}, partition {at.partition}, ends before its committed offset: the"
                " broker lags behind, or the topic was truncated or recreated"
            )
        logger.warning(
            "committed offset beyond the end, restarting at the first record", topic=at.topic,
            partition=at.partition, committed_offset=offset, end_offset=self.end_offsets_at_open[at],
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
        return any(self._positions[at] < end for at, end in self.end_offsets_at_open.items())

    async def read(
        self, limit: int, wait_seconds: float, partitions: Sequence[TopicPartition] = ()
    ) -> Sequence[ConsumerRecord[bytes, bytes]]:
        """At most `limit` of the next records, in order within each partition. Raises LogUnavailable.

        There is no await after records left the consumer, so a cancelled caller loses none.
        """
        loop = asyncio.get_running_loop()
        # Checked per partition: one may be stuck while others return records.
        idle_seconds = loop.time() - min(self._last_read_at.values(), default=loop.time())
        if wait_seconds and idle_seconds >= _STUCK_SECONDS and loop.time() >= self._next_check_at:
            self._next_check_at = loop.time() + _STUCK_SECONDS
            if self._consumer is not None and (self._check_task is None or self._check_task.done()):
                # Concurrent with the reads: an unresponsive broker may answer late, and records may arrive before that.
                self._check_task = asyncio.create_task(self._check_stuck(), name="reader-watch")
        if self._is_stuck:
            await self.reopen(dict(self._positions))
        consumer = self._consumer
        if consumer is None:
            raise LogUnavailable(f"{self._access.url}: the reader is not open")
        try:
            found = await consumer.getmany(*partitions, timeout_ms=int(wait_seconds * 1000), max_records=limit)
            # The positions are known, so this returns at once.
            positions = {at: await consumer.position(at) for at in partitions or self._partitions}
        except CLIENT_ERRORS as error:
            unread = unavailable(self._access.url, error, "Read")
            self.refused = str(unread) if isinstance(unread, LogNotAuthorized) else None
            raise unread from None
        if found or wait_seconds:  # a read without a wait may precede the first response
            self.refused = None
        # aiokafka restarts at the first offset where the position does not exist.
        await self._refuse_recreated(self._positions, positions)
        self._positions |= positions
        self._last_read_at |= dict.fromkeys(found, loop.time())
        return [record for records in found.values() for record in records]

    async def read_to_end(self, silence_seconds: float) -> AsyncIterator[ConsumerRecord[bytes, bytes]]:
        """The records that existed at `open`, from the position on. Raises LogUnavailable after `silence_seconds`
        without records.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + silence_seconds
        while self.is_behind:
            records = await self.read(_READ_LIMIT, _READ_WAIT_SECONDS)
            if records:
                until = loop.time() + silence_seconds
            elif loop.time() > until:
                names = ", ".join(sorted({at.topic for at in self._partitions}))
                raise LogUnavailable(f"{self._access.url}: {names} cannot be read to the end")
            for record in records:
                yield record

    async def read_until_lost(
        self, lost: asyncio.Event, limit: int, wait_seconds: float
    ) -> Sequence[ConsumerRecord[bytes, bytes]]:
        """As `read`, but ends when the shard is lost. Raises ShardLost, LogUnavailable."""
        reading = asyncio.ensure_future(self.read(limit, wait_seconds))
        loss = asyncio.ensure_future(lost.wait())
        try:
            await asyncio.wait({reading, loss}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise ShardLost
            return reading.result()
        finally:
            loss.cancel()
            if not reading.done():
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def end_offsets(self) -> Mapping[TopicPartition, int]:
        """End offset of each partition, after its last committed record. Raises LogUnavailable."""
        assert self._consumer is not None
        try:
            async with asyncio.timeout(30):
                ends: Mapping[TopicPartition, int] = await self._consumer.end_offsets(list(self._partitions))
                return ends
        except CLIENT_ERRORS as error:
            raise unavailable(self._access.url, error, "Read") from None

    async def _check_stuck(self) -> None:
        """Check whether unread records exist. A partition is stuck when it is behind twice at the same position."""
        try:
            ends = await self.end_offsets()
        except LogUnavailable:
            return
        except Exception:
            logger.exception("check for a stuck reader failed")
            return
        behind = {at: self._positions[at] for at, end in ends.items() if end > self._positions[at]}
        if any(self._behind.get(at) == position for at, position in behind.items()):
            logger.warning(
                "reader is stuck, reopening", end_offsets={f"{at.topic}/{at.partition}": ends[at] for at in behind}
            )
            self._is_stuck = True
        elif behind:
            self._next_check_at = asyncio.get_running_loop().time() + _RECHECK_SECONDS
        self._behind = behind

    async def close(self) -> None:
        check, self._check_task = self._check_task, None
        if check is not None:
            check.cancel()
            await asyncio.gather(check, return_exceptions=True)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await _close(consumer)


async def _close(consumer: AIOKafkaConsumer) -> None:
    await stop_or_abort(consumer.stop(), consumer._client, _CLOSE_SECONDS)
