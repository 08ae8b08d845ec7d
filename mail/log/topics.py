"""Pure functions for the topic, shard and key of each record.

`accepted`, `attempted`, `queue` and `events` share the number of shards and the partitioner (queue id), so the owner of
a shard has all records of a message. `dispatched` is partitioned by `partition_key`, which groups the deliveries that
one worker must see together. The partitioner is CRC-32 of the key in every adapter.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple, assert_never

from mail.message import QueueId, queue_id_of
from mail.record import Accepted, Attempted, Delivery, Dispatched, Event, QueueEntry, QueueTombstone, Record
from mail.route import ToMailbox, ToMx, ToRelay, Unresolved

ROUTER, DELIVERY = "router", "delivery"  # roles that consume topics


class Partitioning(Enum):
    QUEUE_ID = auto()
    ROUTE = auto()  # `partition_key`
    NONE = auto()  # one shard


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic, as data for every adapter. Records are removed once `consumer`, a role, has consumed them; without one,
    when a later record has the same key (`compacted`), or by age.
    """

    name: str
    record: type[Any]  # kind of its records
    consumer: str = ""
    compacted: bool = False
    partitioning: Partitioning = Partitioning.QUEUE_ID


ACCEPTED = Topic("accepted", Accepted, ROUTER)
QUEUE = Topic("queue", QueueEntry, compacted=True)
DISPATCHED = Topic("dispatched", Dispatched, DELIVERY, partitioning=Partitioning.ROUTE)
ATTEMPTED = Topic("attempted", Attempted, ROUTER)
EVENTS = Topic("events", Event)

ALL_TOPICS = (ACCEPTED, QUEUE, DISPATCHED, ATTEMPTED, EVENTS)
CONSUMED_TOPICS = tuple(topic for topic in ALL_TOPICS if topic.consumer)  # the embedded log stores their positions
CONSUMED_BY = {role: tuple(topic for topic in CONSUMED_TOPICS if topic.consumer == role) for role in (ROUTER, DELIVERY)}


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """Number of shards of the topics partitioned by queue id, fixed when the log is created, and of `dispatched`, which
    may grow on Kafka (`log.delivery_shards`).
    """

    by_queue_id: int = 1
    of_dispatched: int = 1

    def of(self, topic: Topic) -> int:
        match topic.partitioning:
            case Partitioning.QUEUE_ID:
                return self.by_queue_id
            case Partitioning.ROUTE:
                return self.of_dispatched
            case Partitioning.NONE:
                return 1


RELAY_BUCKETS = 16


class Place(NamedTuple):  # half the cost of a frozen dataclass; one for every record
    topic: Topic
    shard: int
    key: str


def shard_of(key: str, count: int) -> int:
    """CRC-32 of the UTF-8 key, modulo `count`."""
    return 0 if count == 1 else zlib.crc32(key.encode()) % count


def partition_key(delivery: Delivery) -> str:
    """The key that selects the shard of a delivery. All mail of a mailbox owner or of an MX site is in one shard, so
    that one process has the connections and the back-off of the site. A configured relay may be the next hop of all
    mail, so its mail is spread over buckets, with each message in one bucket.
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
    """Prefix of the topics, groups and transactional ids of a dedicated tenant."""
    return f"{prefix}{tenant}."


def place(record: Record, counts: ShardCounts) -> Place:
    """The topic, shard and key of a record."""
    match record:
        case Accepted():
            queue_id = record.message.queue_id
            return Place(ACCEPTED, shard_of(queue_id, counts.by_queue_id), queue_id)
        case Dispatched():
            key = record.delivery.id
            return Place(DISPATCHED, shard_of(partition_key(record.delivery), counts.of_dispatched), key)
        case Attempted():
            key = record.delivery_id
            return Place(ATTEMPTED, shard_of(queue_id_of(key), counts.by_queue_id), key)
        case QueueEntry():
            key = record.delivery.id
            return Place(QUEUE, shard_of(queue_id_of(key), counts.by_queue_id), key)
        case QueueTombstone():
            key = record.delivery_id
            return Place(QUEUE, shard_of(queue_id_of(key), counts.by_queue_id), key)
        case Event():
            return Place(EVENTS, shard_of(record.queue_id, counts.by_queue_id), record.queue_id)
        case _:
            assert_never(record)
