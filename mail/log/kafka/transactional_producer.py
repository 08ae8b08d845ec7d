"""The router's commit: outputs and input marks of one shard in one Kafka transaction, under one transactional id.

Whoever starts a producer of this id fences every earlier one at the broker, so a stale owner can commit nothing: that
is the lock of a shard, and there is no other. A transaction that failed in any way ends its producer; the next one
begins by finding out from the broker what became of it. aiokafka does not look at the fate of its batches when it
commits, so every one is awaited here first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition, errors

from mail.log import LogUnavailable, ShardLost
from mail.log.codec import encode
from mail.log.kafka.access import BATCH_BYTES, CLIENT_ERRORS, RECORD_BYTES_MAX, Access, unavailable
from mail.log.kafka.producer import stop_producer
from mail.log.topics import ShardCounts, place
from mail.record import Record
from mail.telemetry.log import PRODUCE_DURATION, PRODUCE_ERRORS

logger = structlog.get_logger()

# A killed router's open transaction hides what others dispatched behind it until the broker ends it, or until the
# shard's next owner does: the shorter the better, and longer than any batch takes.
TRANSACTION_SECONDS = 15.0
# Less than that, or it would wait for what the broker has ended. One that takes longer is made again, which is safe at
# any point; aiokafka may wait for a dead coordinator twice as long.
COMMIT_SECONDS = 10.0
_STOP_SECONDS = 1.0
_FENCED = (errors.ProducerFenced, errors.InvalidProducerEpoch, errors.InvalidProducerIdMapping)

Batches = Mapping[TopicPartition, Sequence[tuple[bytes, bytes | None]]]  # (key, value) in order


class TransactionalProducer:
    """Owns the transactional id of one shard while `open`."""

    def __init__(self, access: Access, transactional_id: str, group: str, timeout_seconds: float) -> None:
        self._access = access
        self._id = transactional_id
        self._group = group
        self._timeout = min(timeout_seconds, COMMIT_SECONDS)
        self._producer: AIOKafkaProducer | None = None

    async def open(self) -> None:
        """Fence every other holder of the id, and settle what it left open. Raises LogUnavailable."""
        await self.close()
        producer = self._access.producer(
            transactional_id=self._id,
            transaction_timeout_ms=int(TRANSACTION_SECONDS * 1000),
            max_batch_size=BATCH_BYTES,
            max_request_size=RECORD_BYTES_MAX,
        )
        try:
            async with asyncio.timeout(self._timeout):
                await producer.start()
        except CLIENT_ERRORS as error:
            await stop_producer(producer)
            raise unavailable(f"transactional id {self._id}", error, "Write") from None
        except BaseException:
            await stop_producer(producer)
            raise
        self._producer = producer

    async def commit(self, batches: Batches, offsets: Mapping[TopicPartition, int]) -> None:
        """All of it or nothing. Raises ShardLost when another holder has the id, LogUnavailable when the fate is not
        known; in both cases `open` again before the next.
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
        except _FENCED:
            logger.warning("shard taken over by another router", transactional_id=self._id)
            raise ShardLost from None
        except CLIENT_ERRORS as error:
            PRODUCE_ERRORS.inc()
            if _is_fenced(producer):
                logger.warning("shard taken over by another router", transactional_id=self._id)
                raise ShardLost from None
            raise unavailable(f"transactional id {self._id}", error, "Write") from None
        finally:
            if not is_committed:
                self._producer = None
                await stop_producer(producer)

    async def _commit(
        self, producer: AIOKafkaProducer, batches: Batches, offsets: Mapping[TopicPartition, int]
    ) -> None:
        for at in batches:
            if at.partition not in await producer.partitions_for(at.topic):  # it has grown since we looked
                await producer.client.force_metadata_update()
                if at.partition not in await producer.partitions_for(at.topic):
                    raise errors.UnknownTopicOrPartitionError(f"{at.topic}, partition {at.partition}")
        await producer.begin_transaction()
        sends = [asyncio.ensure_future(_send(producer, at, records)) for at, records in batches.items()]
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
            await stop_producer(producer, _STOP_SECONDS)


async def _send(producer: AIOKafkaProducer, at: TopicPartition, records: Sequence[tuple[bytes, bytes | None]]) -> None:
    """Write the records in their order, batch after batch; return when all are confirmed."""
    confirmed = []
    batch = producer.create_batch()
    for key, value in records:
        if batch.append(timestamp=None, key=key, value=value) is None:
            batch.close()
            confirmed.append(await producer.send_batch(batch, at.topic, partition=at.partition))
            batch = producer.create_batch()
            batch.append(timestamp=None, key=key, value=value)
    batch.close()
    confirmed.append(await producer.send_batch(batch, at.topic, partition=at.partition))
    for future in confirmed:
        await future


def _is_fenced(producer: AIOKafkaProducer) -> bool:
    """Whether the sender ended because another holder has the id: then the rest of the call only timed out."""
    sender = producer._sender.sender_task
    if sender is None or not sender.done() or sender.cancelled():
        return False
    return isinstance(sender.exception(), _FENCED)


def batch_by_partition(records: Sequence[Record], counts: ShardCounts, access: Access) -> Batches:
    """The records as keys and frames, by partition."""
    batches: dict[TopicPartition, list[tuple[bytes, bytes | None]]] = {}
    for record in records:
        at = place(record, counts)
        partition = access.partition(at.topic, at.shard)
        batches.setdefault(partition, []).append((at.key.encode(), encode(record)))
    return batches
