"""Topics of the log, as data, and the topic, shard and key of each record. Pure.

`accepted`, `attempted`, `queue` and `events` share the number of shards and the partitioner (queue id), so the owner of
a shard has all records of a message. `dispatched` is partitioned by `partition_key`, which groups the deliveries that
one worker must see together. The partitioner is CRC-32 of the key in every adapter.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from operator import attrgetter
from typing import Any, NamedTuple, assert_never

from mail.message import DeliveryId, QueueId, queue_id_of
from mail.record import Accepted, Attempted, Delivery, Dispatched, Event, QueueEntry, QueueTombstone, Record, Tombstone
from mail.route import ToMailbox, ToMx, ToRelay, Unresolved

ROUTER, DELIVERY = "router", "delivery"  # roles that consume topics
RELAY_BUCKETS = 16


class Partitioning(Enum):
    QUEUE_ID = auto()
    ROUTE = auto()  # `partition_key`
    NONE = auto()  # one shard


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic, as data for every adapter. Records are removed once `consumer`, a role, has consumed them; without one,
    when a later record or a `tombstone` has the same key (compacted), or by age.

    `key` returns the key of a record or tombstone, and `placed_by` the string that selects its shard, from both.
    `tombstone` is a kind that is made from the key.
    """

    name: str
    record: type[Any]  # kind of its records
    key: Callable[[Any], str]
    placed_by: Callable[[Any, str], str]
    consumer: str = ""
    tombstone: type[Tombstone] | None = None
    partitioning: Partitioning = Partitioning.QUEUE_ID

    @property
    def compacted(self) -> bool:
        return self.tombstone is not None


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


class Place(NamedTuple):  # half the cost of a frozen dataclass; one for every record
    topic: Topic
    shard: int
    key: str


class Topics:
    """The topics of a log."""

    def __init__(self, topics: Sequence[Topic]) -> None:
        self.all = tuple(topics)
        self.consumed = tuple(topic for topic in topics if topic.consumer)
        self.by_name = {topic.name: topic for topic in topics}
        self._by_kind = {kind: topic for topic in topics for kind in (topic.record, topic.tombstone) if kind}

    def consumed_by(self, role: str) -> Sequence[Topic]:
        return [topic for topic in self.consumed if topic.consumer == role]

    def place(self, record: Record, counts: ShardCounts) -> Place:
        """The topic, shard and key of a record."""
        topic = self._by_kind[type(record)]
        key = topic.key(record)
        return Place(topic, shard_of(topic.placed_by(record, key), counts.of(topic)), key)


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


def _key_of_queue(record: QueueEntry | QueueTombstone) -> str:
    return record.delivery.id if isinstance(record, QueueEntry) else record.delivery_id


def _by_queue_id(_record: object, key: str) -> str:
    return queue_id_of(DeliveryId(key))  # a queue id itself, or that of a delivery id


def _by_route(record: Dispatched, _key: str) -> str:
    return partition_key(record.delivery)


ACCEPTED = Topic("accepted", Accepted, attrgetter("message.queue_id"), _by_queue_id, ROUTER)
QUEUE = Topic("queue", QueueEntry, _key_of_queue, _by_queue_id, tombstone=QueueTombstone)
DISPATCHED = Topic(
    "dispatched", Dispatched, attrgetter("delivery.id"), _by_route, DELIVERY, partitioning=Partitioning.ROUTE
)
ATTEMPTED = Topic("attempted", Attempted, attrgetter("delivery_id"), _by_queue_id, ROUTER)
EVENTS = Topic("events", Event, attrgetter("queue_id"), _by_queue_id)

TOPICS = Topics((ACCEPTED, QUEUE, DISPATCHED, ATTEMPTED, EVENTS))
ALL_TOPICS, CONSUMED_TOPICS = TOPICS.all, TOPICS.consumed
place = TOPICS.place
