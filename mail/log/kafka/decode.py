"""Decoding of records from Kafka, with errors that name the position, and reads of compacted topics."""

from __future__ import annotations

from typing import Any

from aiokafka import ConsumerRecord, TopicPartition

from mail.log import LogUnusable
from mail.log.codec import FrameError, decode
from mail.log.kafka.access import Access
from mail.log.kafka.partition_reader import PartitionReader
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.topics import ALL_TOPICS
from mail.record import QueueEntry

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
        raise _unreadable_error(access, tp.topic, tp.partition, f"key {key.decode(errors='replace')}", reason) from None


def _unreadable_error(access: Access, topic: str, shard: int, position: str, reason: FrameError) -> LogUnusable:
    return LogUnusable(
        f"{access.url}: the record at {topic}, shard {shard}, {position} cannot be read: {reason};"
        " it stays in the topic, and no later record of this shard is processed;"
        ' run "eilpost doctor"'
    )


async def read_compacted(access: Access, tp: TopicPartition, key_prefix: bytes = b"") -> dict[bytes, bytes]:
    """The last value of each key that begins with `key_prefix`, without tombstones. Raises LogUnavailable."""
    values: dict[bytes, bytes] = {}
    reader = PartitionReader(access, [tp])
    try:
        await reader.open({tp: None})
        async for record in reader.read_to_end(TIMEOUTS.read_seconds):
            key = record.key or b""
            if not key.startswith(key_prefix):
                continue
            if record.value is None:
                values.pop(key, None)
            else:
                values[key] = record.value
    finally:
        await reader.close()
    return values
