"""Records out of a partition: decoded, or a line that names where the one stands that cannot be; and a compacted topic
folded to what it says now.

Used by whoever reads: shards and people. Next: `mail/log/kafka/router_shard.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
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


async def last_of_each_key(
    access: Access, partitions: Sequence[TopicPartition], start: bytes = b""
) -> dict[tuple[TopicPartition, bytes], bytes]:
    """What a compacted topic says: the last value of each key that begins with `start`, without those that end in a
    tombstone. Raises LogUnavailable.
    """
    found: dict[tuple[TopicPartition, bytes], bytes] = {}
    reader = Reader(access, partitions)
    try:
        await reader.open(dict.fromkeys(partitions))
        async for record in reader.to_end(_SILENCE_SECONDS):
            if not (record.key or b"").startswith(start):
                continue
            key = (TopicPartition(record.topic, record.partition), record.key or b"")
            if record.value is None:
                found.pop(key, None)
            else:
                found[key] = record.value
    finally:
        await reader.close()
    return found
