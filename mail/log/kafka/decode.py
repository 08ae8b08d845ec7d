"""Decoding of records from Kafka, with errors that name the position, and reads of compacted topics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition

from mail.log import LogUnusable, damaged
from mail.log.codec import FrameError, UnknownVersion, decode
from mail.log.damaged import Damaged, find_id
from mail.log.followers import KeyedFrame, decode_keyed
from mail.log.kafka.access import Access
from mail.log.kafka.partition_reader import FETCH_WAIT, PartitionReader
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.topics import ShardCounts, Topic
from mail.message import DeliveryId
from mail.record import Dispatched, QueueEntry

_PARTITIONS_AT_A_TIME = 4
_FOLLOWED_MAX = 1000  # records at a time


def decode_record(access: Access, record: ConsumerRecord[bytes, bytes]) -> Any:
    """Decode a record of its topic's kind; Damaged if that fails. Raises LogUnusable for a newer version, which stops
    the reader and stays in the topic.
    """
    topic, frame = record.topic.removeprefix(access.prefix), record.value or b""
    try:
        return decode(frame, access.topics.by_name[topic].record)
    except UnknownVersion as reason:
        raise _unreadable_error(access, record.topic, record.partition, f"offset {record.offset}", reason) from None
    except FrameError as reason:
        key = find_id(b'"%s"' % (record.key or b"")) or find_id(frame)
        return Damaged(topic, record.partition, record.offset, key, frame, str(reason))


def decode_queue_entry(access: Access, tp: TopicPartition, key: bytes, frame: bytes) -> QueueEntry | Damaged:
    """Decode a queue entry. Raises LogUnusable for a newer version."""
    try:
        return damaged.decode_queue_entry(tp.partition, key, frame)
    except UnknownVersion as reason:
        raise unreadable_queue_entry(access, tp, key, reason) from None


def unreadable_queue_entry(access: Access, tp: TopicPartition, key: bytes, reason: UnknownVersion) -> LogUnusable:
    return _unreadable_error(access, tp.topic, tp.partition, f"key {key.decode(errors='replace')}", reason)


def _unreadable_error(access: Access, topic: str, shard: int, position: str, reason: UnknownVersion) -> LogUnusable:
    return LogUnusable(
        f"{access.url}: the record at {topic}, shard {shard}, {position} cannot be read: {reason};"
        " it stays in the topic, and no later record of this shard is processed;"
        ' run "eilpost doctor"'
    )


async def read_older_entries(access: Access, tp: TopicPartition, keys: Container[bytes]) -> Mapping[bytes, QueueEntry]:
    """The last queue entry of each key that can be decoded, if compaction has left one. Raises LogUnavailable."""
    entries: dict[bytes, QueueEntry] = {}
    async with open_reader(access, [tp]) as reader:
        async for records in reader.read_to_end(TIMEOUTS.read_seconds):
            for record in records:
                if record.key in keys and record.value is not None:
                    with suppress(FrameError):
                        entries[record.key] = decode(record.value, QueueEntry)
    return entries


async def find_last_dispatches(
    access: Access, partitions: Sequence[TopicPartition], keys: Container[bytes]
) -> Mapping[DeliveryId, Dispatched]:
    """The last dispatch of each delivery that is still in the topic, consumed or not. Raises LogUnavailable."""
    found: dict[DeliveryId, Dispatched] = {}
    async with open_reader(access, partitions) as reader:
        async for records in reader.read_to_end(TIMEOUTS.read_seconds):
            for record in records:
                if record.key in keys and record.value is not None:
                    with suppress(FrameError):
                        dispatched = decode(record.value, Dispatched)
                        found[dispatched.delivery.id] = _later(found.get(dispatched.delivery.id), dispatched)
    return found


def _later(one: Dispatched | None, other: Dispatched) -> Dispatched:
    """The dispatch of the later attempt: a rerouted delivery has dispatches in several partitions."""
    return other if one is None or other.number >= one.number else one


@asynccontextmanager
async def open_reader(
    access: Access, partitions: Sequence[TopicPartition], fetch_wait: timedelta = timedelta(milliseconds=10)
) -> AsyncIterator[PartitionReader]:
    """A reader from the beginning of these partitions. Raises LogUnavailable."""
    reader = PartitionReader(access, partitions, fetch_wait=fetch_wait)
    try:
        await reader.open(dict.fromkeys(partitions))
        yield reader
    finally:
        await reader.close()


async def follow(access: Access, topic: Topic, counts: ShardCounts) -> AsyncIterator[Sequence[Any]]:
    """See `TopicFollower.follow`."""
    partitions = [access.partition(topic, shard) for shard in range(counts.of(topic))]
    async with open_reader(access, partitions, FETCH_WAIT) as reader:
        frames: dict[tuple[int, str], KeyedFrame] = {}
        async for batch in reader.read_to_end(TIMEOUTS.read_seconds):
            frames |= {(keyed.shard, keyed.key): keyed for keyed in map(_keyed_frame, batch)}
        yield _decode_keyed(access, topic, [keyed for keyed in frames.values() if keyed.frame is not None])
        while True:
            if records := await reader.read(_FOLLOWED_MAX, TIMEOUTS.read_wait_seconds):
                yield _decode_keyed(access, topic, [_keyed_frame(record) for record in records])


def _keyed_frame(record: ConsumerRecord[bytes, bytes]) -> KeyedFrame:
    return KeyedFrame(record.partition, (record.key or b"").decode(errors="replace"), record.value)


def _decode_keyed(access: Access, topic: Topic, frames: Sequence[KeyedFrame]) -> Sequence[Any]:
    records = []
    for keyed in frames:
        try:
            records.append(decode_keyed(topic, keyed))
        except UnknownVersion as reason:
            raise _unreadable_error(access, access.topic(topic), keyed.shard, f"key {keyed.key}", reason) from None
    return records


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
        async with open_reader(access, group) as reader:
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
        for item in values.items():
            yield item
