"""Transactional producer of one router shard: outputs and input offsets in one Kafka transaction.

A new producer with the shard's transactional id fences every earlier one at the broker; this is the only lock of a
router shard. A failed transaction ends its producer, and the next one settles that transaction at the broker. aiokafka
does not check its batches when it commits, so each one is awaited first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition, errors

from mail.log import LogUnavailable, ShardLost
from mail.log.codec import encode
from mail.log.kafka.access import BATCH_BYTES, CLIENT_ERRORS, RECORD_BYTES_MAX, Access, unavailable
from mail.log.kafka.aiokafka_compat.clients import sender_error, stop_or_abort
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.topics import ShardCounts
from mail.record import Record
from mail.telemetry.log import PRODUCE_DURATION, PRODUCE_ERRORS

logger = structlog.get_logger()

_FENCED = (errors.ProducerFenced, errors.InvalidProducerEpoch, errors.InvalidProducerIdMapping)

Batches = Mapping[TopicPartition, Sequence[tuple[bytes, bytes | None]]]  # (key, value) in order


class TransactionalProducer:
    """Holds the transactional id of one shard while open."""

    def __init__(self, access: Access, group: str, shard: int, timeout_seconds: float) -> None:
        self._access = access
        self._id = f"{group}-{shard}"
        self._group = group
        self._shard = shard
        self._timeout = min(timeout_seconds, TIMEOUTS.transaction_commit_seconds)
        self._producer: AIOKafkaProducer | None = None

    async def open(self) -> None:
        """Fence every other holder of the id and settle its open transaction. Raises LogUnavailable."""
        await self.close()
        producer = self._access.producer(
            transactional_id=self._id,
            transaction_timeout_ms=int(TIMEOUTS.transaction_seconds * 1000),
            max_batch_size=BATCH_BYTES,
            max_request_size=RECORD_BYTES_MAX,
        )
        try:
            async with asyncio.timeout(self._timeout):
                await producer.start()
        except BaseException as error:
            await stop_or_abort(producer)
            if isinstance(error, CLIENT_ERRORS):
                raise unavailable(f"transactional id {self._id}", error, "Write") from None
            raise
        self._producer = producer

    async def commit(self, batches: Batches, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit atomically. Raises ShardLost when another producer holds the id, LogUnavailable when the result is
        unknown; in both cases `open` must precede the next commit.
        """
        producer = self._producer
        if producer is None:
            raise LogUnavailable(f"transactional id {self._id}: the last transaction failed")
        is_committed = False
        try:
            async with asyncio.timeout(self._timeout):
                with PRODUCE_DURATION.time():
                    await self._commit(producer, batches, offsets)
            is_committed = True
        except CLIENT_ERRORS as error:
            if isinstance(error, _FENCED) or isinstance(sender_error(producer), _FENCED):
                logger.warning("shard taken over by another router", transactional_id=self._id, shard=self._shard)
                raise ShardLost from None
            PRODUCE_ERRORS.inc()
            raise unavailable(f"transactional id {self._id}", error, "Write") from None
        finally:
            if not is_committed:
                self._producer = None
                await stop_or_abort(producer)

    async def _commit(
        self, producer: AIOKafkaProducer, batches: Batches, offsets: Mapping[TopicPartition, int]
    ) -> None:
        for tp in batches:
            if tp.partition not in await producer.partitions_for(tp.topic):  # the topic has grown
                await producer.client.force_metadata_update()
                if tp.partition not in await producer.partitions_for(tp.topic):
                    raise errors.UnknownTopicOrPartitionError(f"{tp.topic}, partition {tp.partition}")
        await producer.begin_transaction()
        sends = [asyncio.ensure_future(_send(producer, tp, records)) for tp, records in batches.items()]
        try:
            await asyncio.gather(*sends)
        finally:
            for task in sends:
                task.cancel()
        if offsets:
            await producer.send_offsets_to_transaction(dict(offsets), self._group)
        await producer.commit_transaction()

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_or_abort(producer, TIMEOUTS.cancel_seconds)


async def _send(producer: AIOKafkaProducer, tp: TopicPartition, records: Sequence[tuple[bytes, bytes | None]]) -> None:
    """Write the records in order, in batches; return when all are confirmed."""
    confirmations = []
    batch = producer.create_batch()
    for key, value in records:
        if batch.append(timestamp=None, key=key, value=value) is None:  # full
            batch.close()
            confirmations.append(await producer.send_batch(batch, tp.topic, partition=tp.partition))
            batch = producer.create_batch()
            batch.append(timestamp=None, key=key, value=value)
    batch.close()
    confirmations.append(await producer.send_batch(batch, tp.topic, partition=tp.partition))
    for confirmation in confirmations:
        await confirmation


def batch_by_partition(records: Sequence[Record], counts: ShardCounts, access: Access) -> Batches:
    """The records as keys and frames, by partition."""
    batches: dict[TopicPartition, list[tuple[bytes, bytes | None]]] = {}
    for record in records:
        topic, shard, key = access.topics.place(record, counts)
        batches.setdefault(access.partition(topic, shard), []).append((key.encode(), encode(record)))
    return batches
