"""Records out of a partition: decoded, or a line that names where the one stands that cannot be; and a compacted topic
folded to what it says now.

Used by whoever reads: shards and people. Next: `mail/log/kafka/router_shard.py`.
"""

from __future__ import annotations

from typing import cast

from aiokafka import ConsumerRecord, TopicPartition

from mail.log import LogUnusable
from mail.log.codec import FrameError, decode
from mail.log.kafka.access import Access
from mail.log.kafka.reading import Reader
from mail.record import Pending, Record

_SILENCE_SECONDS = 30.0


def read(access: Access, record: ConsumerRecord[bytes, bytes]) -> Record:
    """The record in a frame. Raises LogUnusable: what cannot be read stops the reader, and stays."""
    try:
        return decode(record.value or b"")
    except FrameError as reason:
        raise _unreadable(access, record.topic, record.partition, f"offset {record.offset}", reason) from None


def read_line(access: Access, at: TopicPartition, key: bytes, frame: bytes) -> Pending:
    """A queue line. Raises LogUnusable."""
    try:
        return cast("Pending", decode(frame))
    except FrameError as reason:
        raise _unreadable(access, at.topic, at.partition, f"key {key.decode(errors='replace')}", reason) from None


def _unreadable(access: Access, topic: str, shard: int, place: str, reason: FrameError) -> LogUnusable:
    return LogUnusable(
        f"{access.where}: the record at {topic}, shard {shard}, {place} cannot be read: {reason};"
        " it was left where it is, and nothing behind it is taken"
    )


async def last_of_each_key(access: Access, at: TopicPartition, start: bytes = b"") -> dict[bytes, bytes]:
    """What a partition of a compacted topic says: the last value of each key that begins with `start`, without those
    that end in a tombstone. Raises LogUnavailable.
    """
    found: dict[bytes, bytes] = {}
    reader = Reader(access, [at])
    try:
        await reader.open({at: None})
        async for record in reader.to_end(_SILENCE_SECONDS):
            key = record.key or b""
            if not key.startswith(start):
                continue
            if record.value is None:
                found.pop(key, None)
            else:
                found[key] = record.value
    finally:
        await reader.close()
    return found
