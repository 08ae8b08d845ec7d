"""Damaged record: bytes of the log that are no frame, and what is still known of them. Pure.

A frame of a newer version is not damaged (`codec.UnknownVersion`): it stops its reader.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mail.log.codec import FrameError, UnknownVersion, decode
from mail.log.topics import QUEUE, ShardCounts, shard_of_message
from mail.message import DeliveryId, QueueId, queue_id_of, queue_id_time
from mail.record import QueueEntry

_ID = re.compile(rb'"([0-9A-HJKMNP-TV-Z]{26}(-[0-9]{1,9})?)"')
HEAD_BYTES = 1024  # of a frame, in which its first id is searched


@dataclass(frozen=True, slots=True)
class Damaged:
    """A record that cannot be decoded. `frame` and `content` are its bytes as stored; `content` is what was stored
    apart from the frame, and `is_content_intact` whether it has the right checksum.

    `key` is the queue id or delivery id of the record, "" if it is unknown. `offset` is None in a compacted topic,
    where `raw_key` is the key as stored, and `previous` an older record with the same key, if the log still has one; of
    a record whose key alone is damaged, `previous` is the record.
    """

    topic: str
    shard: int
    offset: int | None
    key: str
    frame: bytes
    reason: str
    content: bytes = b""
    is_content_intact: bool = False
    previous: QueueEntry | None = None
    raw_key: bytes | None = None

    @property
    def is_key_damaged(self) -> bool:
        """Whether no later record can replace it."""
        return self.raw_key is not None and (self.raw_key != self.key.encode() or self.queue_id is None)

    @property
    def position(self) -> str:
        """ "accepted, shard 0, offset 17"; "queue, shard 0, key QUEUEID-1"."""
        place = f"key {self.key}" if self.offset is None else f"offset {self.offset}"
        return f"{self.topic}, shard {self.shard}, {place}"

    @property
    def queue_id(self) -> QueueId | None:
        """The queue id in `key`, if it is one."""
        queue_id = queue_id_of(DeliveryId(self.key))
        try:
            queue_id_time(queue_id)
        except (ValueError, OverflowError, OSError):  # also for a time outside of what the platform can show
            return None
        return queue_id


def decode_queue_entry(shard: int, raw_key: bytes, frame: bytes) -> QueueEntry | Damaged:
    """Decode the frame of a queue entry with this key. Raises UnknownVersion."""
    key = raw_key.decode(errors="replace")
    try:
        entry = decode(frame, QueueEntry)
    except UnknownVersion:
        raise
    except FrameError as reason:
        if _ID.fullmatch(f'"{key}"'.encode()) is None:
            key = find_id(frame) or key
        return Damaged(QUEUE.name, shard, None, key, frame, str(reason), raw_key=raw_key)
    delivery_id = entry.delivery.id
    if delivery_id.encode() == raw_key:
        return entry
    return Damaged(QUEUE.name, shard, None, delivery_id, frame, f"its key is {key!r}", previous=entry, raw_key=raw_key)


def find_id(frame: bytes) -> str:
    """The first queue id or delivery id in a frame, which may be damaged itself; "" if there is none."""
    match = _ID.search(frame, 0, HEAD_BYTES)
    return "" if match is None else match[1].decode()


def report_shards(damaged: Damaged, counts: ShardCounts) -> Sequence[int]:
    """The shards of `attempted` that get a damaged dispatch: all of them if its delivery is unknown."""
    queue_id = damaged.queue_id
    return range(counts.by_queue_id) if queue_id is None else (shard_of_message(queue_id, counts),)
