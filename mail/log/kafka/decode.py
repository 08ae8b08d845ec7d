"""Decoding of records from Kafka, with errors that name the position, and reads of compacted topics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition

from mail.log import LogUnusable
from mail.log.codec import FrameError, decode
from mail.log.kafka.access import Access
from mail.log.kafka.partition_reader import PartitionReader
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.topics import ALL_TOPICS
from mail.record import QueueEntry

_PARTITIONS_AT_A_TIME = 4
_KINDS = {topic.name: topic.record for topic in ALL_TOPICS}


def decode_record(access: Access, record: ConsumerRecord[bytes, bytes]) -> Any:
    """Decode a record of its topic's kind. Raises LogUnusable: an unreadable one stops the reader and stays in the
    topic.
    """
    try:
        return decode(record.value or b"", _KINDS[record.topic.removeprefix(access.prefix)])
    except FrameError as reason:
        raise _unreadable_error(access, record.topic, record.partition, f"offset {record.offset}", reason) from None


def decode_queue_entry(access: Access, tp: TopicPartition, key: bytes, frame: bytes) -> QueueEntry:
    """Decode a queue entry. Raises LogUnusable."""
    try:
        return decode(frame, QueueEntry)
    except FrameError as reason:
        raise unreadable_queue_entry(access, tp, key, reason) from None


def unreadable_queue_entry(access: Access, tp: TopicPartition, key: bytes, reason: FrameError) -> LogUnusable:
    return _unreadable_error(access, tp.topic, tp.partition, f"key {key.decode(errors='replace')}", reason)


def _unreadable_error(access: Access, topic: str, shard: int, position: str, reason: FrameError) -> LogUnusable:
    return LogUnusable(
        f"{access.url}: the record at {topic}, shard {shard}, {position} cannot be read: {reason};"
        " it stays in the topic, and no later record of this shard is processed;"
        ' run "eilpost doctor"'
    )


async def read_compacted(access: Access, tp: TopicPartition, key_prefix: bytes = b"") -> Mapping[bytes, bytes]:
    """The last value of each key that begins with `key_prefix`, without tombstones. Raises LogUnavailable."""
    (values,) = [values async for _, values in read_compacted_partitions(access, [tp], key_prefix)]
    return values


async def read_compacted_partitions(
    access: Access, partitions: Sequence[TopicPartition], key_prefix: bytes = b""
) -> AsyncIterator[tuple[TopicPartition, Mapping[bytes, bytes]]]:
    """As `read_compacted`, of a few partitions at a time, which bounds the memory."""
    for start in range(0, len(partitions), _PARTITIONS_AT_A_TIME):
        group = partitions[start : start + _PARTITIONS_AT_A_TIME]
        values: dict[TopicPartition, dict[bytes, bytes]] = {tp: {} for tp in group}
        reader = PartitionReader(access, group, fetch_wait=timedelta(milliseconds=10))
        try:
            await reader.open(dict.fromkeys(group))
            async for records in reader.read_to_end(TIMEOUTS.read_seconds):
                for record in records:
                    key = record.key or b""
                    if not key.startswith(key_prefix):
                        continue
                    of_partition = values[TopicPartition(record.topic, record.partition)]
                    if record.value is None:
                        of_partition.pop(key, None)
                    else:
                        of_partition[key] = record.value
        finally:
            await reader.close()
        for item in values.items():
            yield item
