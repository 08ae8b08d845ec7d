"""Records out of a partition: decoded, or a line that names where the one stands that cannot be; and a compacted topic
folded to what it says now.

Used by whoever reads: shards and people.
"""

from __future__ import annotations

from typing import cast

from aiokafka import ConsumerRecord, TopicPartition

from mail.log import LogUnusable
from mail.log.codec import FrameError, decode
from mail.log.kafka.access import Access
from mail.log.kafka.partition_reader import PartitionReader
from mail.record import Pending, Record

_SILENCE_SECONDS = 30.0


def decode_record(access: Access, record: ConsumerRecord[bytes, bytes]) -> Record:
    """The record in a frame. Raises LogUnusable: what cannot be read stops the reader, and stays."""
    try:
        return decode(record.value or b"")
    except FrameError as reason:
        raise _unreadable_error(access, record.topic, record.partition, f"offset {record.offset}", reason) from None


def decode_pending(access: Access, at: TopicPartition, key: bytes, frame: bytes) -> Pending:
    """A queue line. Raises LogUnusable."""
    try:
        return cast("Pending", decode(frame))
    except FrameError as reason:
        raise _unreadable_error(access, at.topic, at.partition, f"key {key.decode(errors='replace')}", reason) from None


def _unreadable_error(access: Access, topic: str, shard: int, position: str, reason: FrameError) -> LogUnusable:
    return LogUnusable(
        f"{access.url}: the record at {topic}, shard {shard}, {position} cannot be read: {reason};"
        " it was left where it is, and nothing behind it is taken"
    )


async def read_compacted(access: Access, at: TopicPartition, key_prefix: bytes = b"") -> dict[bytes, bytes]:
    """What a partition of a compacted topic says: the last value of each key that begins with `start`, without those
    that end in a tombstone. Raises LogUnavailable.
    """
    values: dict[bytes, bytes] = {}
    reader = PartitionReader(access, [at])
    try:
        await reader.open({at: None})
        async for record in reader.read_to_end(_SILENCE_SECONDS):
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
