"""The topics, and where each record belongs: topic, shard and key. Pure.

A record knows its place, so nobody passes topic names around: `place(record)` is the one table. `accepted`,
`attempted`, `queue` and `events` share the number of shards and the partitioner (queue id), so one owner of shard *p*
has all of a message; `dispatched` is partitioned by `partition_key`: what one worker has to see together, and no more
than that. The partitioner is CRC-32 of the key, the same in every adapter and every language.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, assert_never

from mail.message import QueueId, queue_id_of
from mail.record import Accepted, Attempted, Delivery, Dispatched, Event, Pending, Record, Settled
from mail.route import ToMailbox, ToMx, ToRelay, Unresolved


@dataclass(frozen=True, slots=True)
class Topic:
    """`kept` is the age at which records may go; None: until consumed, then purged (never by age)."""

    name: str
    compacted: bool = False
    retention: timedelta | None = None


ACCEPTED = Topic("accepted")
QUEUE = Topic("queue", compacted=True)
DISPATCHED = Topic("dispatched")
ATTEMPTED = Topic("attempted")
EVENTS = Topic("events", retention=timedelta(days=7))

ALL_TOPICS = (ACCEPTED, QUEUE, DISPATCHED, ATTEMPTED, EVENTS)


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """How many shards there are: of the topics partitioned by queue id, and of `dispatched`. Chosen once."""

    by_queue_id: int = 1
    by_site: int = 1

    def of(self, topic: Topic) -> int:
        return self.by_site if topic is DISPATCHED else self.by_queue_id


RELAY_BUCKETS = 16


class Place(NamedTuple):  # made for every record: half the price of a frozen dataclass
    topic: Topic
    shard: int
    key: str


def shard_of(key: str, count: int) -> int:
    """The partitioner: CRC-32 of the key's UTF-8, modulo the count."""
    return 0 if count == 1 else zlib.crc32(key.encode()) % count


def partition_key(delivery: Delivery) -> str:
    """What decides which worker carries it: an owner's mail comes to one, and so does the mail of an MX site, whose
    connections and back-off are one worker's. A relay that was configured takes what we give it, and may be the next
    hop of all mail: its mail is spread over buckets, one message's in the same.
    """
    route = delivery.route
    match route:
        case ToMailbox():
            return f"{route.site}/{route.owner}"
        case ToRelay():
            return f"{route.site}/{shard_of(queue_id_of(delivery.id), RELAY_BUCKETS)}"
        case ToMx() | Unresolved():
            return route.site
        case _:
            assert_never(route)


def shard_of_message(queue_id: QueueId, counts: ShardCounts) -> int:
    return shard_of(queue_id, counts.by_queue_id)


def tenant_prefix(prefix: str, tenant: str) -> str:
    """What stands before the topics, groups and transactional ids of a dedicated tenant, where a log has prefixes."""
    return f"{prefix}{tenant}."


def place(record: Record, counts: ShardCounts) -> Place:
    """Where a record belongs."""
    match record:
        case Accepted():
            queue_id = record.message.queue_id
            return Place(ACCEPTED, shard_of(queue_id, counts.by_queue_id), queue_id)
        case Dispatched():
            key = record.delivery.id
            return Place(DISPATCHED, shard_of(partition_key(record.delivery), counts.by_site), key)
        case Attempted():
            key = record.delivery_id
            return Place(ATTEMPTED, shard_of(queue_id_of(key), counts.by_queue_id), key)
        case Pending():
            key = record.delivery.id
            return Place(QUEUE, shard_of(queue_id_of(key), counts.by_queue_id), key)
        case Settled():
            key = record.delivery_id
            return Place(QUEUE, shard_of(queue_id_of(key), counts.by_queue_id), key)
        case Event():
            return Place(EVENTS, shard_of(record.queue_id, counts.by_queue_id), record.queue_id)
        case _:
            assert_never(record)
