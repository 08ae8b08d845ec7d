"""Our topics as Kafka has them: names, configurations, partition counts, what each has to be.

In charge of one table, what each topic must be so that no accepted mail can be lost, and of comparing it with what a
cluster has. Never reads or writes a record. **Law: no undelivered mail is ever removed by a retention limit**, so what
is consumed is purged by offset (`KafkaLog.purge`), and only `events` goes by age.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.metadata import MetadataRequest

from mail.log import LogNotReady, LogUnusable
from mail.log.kafka.access import RECORD_BYTES_MAX, Access
from mail.log.topics import ACCEPTED, ALL_TOPICS, DISPATCHED, EVENTS, ShardCounts, Topic
from mail.settings import LogSettings

T = TypeVar("T")

RECORD_BYTES_NEEDED = 6 << 20  # the least `max.message.bytes`: inline content and an envelope of the usual limits
SHARDS = 12  # partitions of a new topic, where the settings do not say
REPLICATION_SAFE = 3
IN_SYNC_SAFE = 2
_ANY_TRIES, _ANY_PAUSE_SECONDS = 9, 0.1

_MILLISECOND = timedelta(milliseconds=1)
# Compaction keeps a shard's replay short: a tenth of a log dirty is enough to clean it, segments are small, and a
# tombstone is kept for an hour, much longer than any replay takes.
_COMPACTED = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.1",
    "segment.bytes": str(32 << 20),
    "segment.ms": "3600000",
    "delete.retention.ms": "3600000",
    "max.compaction.lag.ms": "86400000",
}
_PURGED = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", "segment.bytes": str(32 << 20)}


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the cluster has it."""

    name: str
    partitions: int
    replication: int  # of its least replicated partition
    in_sync: int  # of its partition with the fewest replicas in sync
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a topic. `fatal`: mail can be lost by it."""

    topic: str
    text: str
    fatal: bool = True


def wanted_config(topic: Topic, settings: LogSettings) -> dict[str, str]:
    """The configuration a new topic gets."""
    replication = settings.replication
    common = {
        "min.insync.replicas": str(IN_SYNC_SAFE if replication >= REPLICATION_SAFE else 1),
        "unclean.leader.election.enable": "false",
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(RECORD_BYTES_MAX),
        "compression.type": "producer",
    }
    if topic.compacted:
        return common | _COMPACTED
    if topic is EVENTS:
        kept = str(settings.events_kept // _MILLISECOND)
        return common | {"cleanup.policy": "delete", "retention.ms": kept, "retention.bytes": "-1"}
    return common | _PURGED


def wanted_partitions(topic: Topic, settings: LogSettings) -> int:
    return (settings.delivery_shards if topic is DISPATCHED else settings.shards) or SHARDS


async def find_topics(
    admin: AIOKafkaAdminClient, access: Access, *, with_config: bool = True
) -> dict[Topic, TopicState]:
    """Our topics that exist. Raises aiokafka's errors."""
    names = {access.topic(topic): topic for topic in ALL_TOPICS}
    described = await from_any_broker(lambda: describe_topics(admin, list(names)))
    topic_states: dict[Topic, TopicState] = {}
    configs = await _configs(admin, [each["topic"] for each in described if not each["error_code"]], with_config)
    for each in described:
        if each["error_code"] == errors.TopicAuthorizationFailedError.errno:
            raise errors.TopicAuthorizationFailedError(each["topic"])  # there or not: it is not missing
        name, partitions = each["topic"], each["partitions"]
        if each["error_code"] or not partitions:
            continue
        topic_states[names[name]] = TopicState(
            name,
            len(partitions),
            min(len(partition["replicas"]) for partition in partitions),
            min(len(partition["isr"]) for partition in partitions),
            configs.get(name, {}),
        )
    return topic_states


async def from_any_broker(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of any broker: one that has just died is in the lists of the others for some seconds more, and
    aiokafka asks at random. Raises aiokafka's errors.
    """
    for _ in range(_ANY_TRIES):
        try:
            return await call()
        except (errors.NodeNotReadyError, errors.KafkaConnectionError):
            await asyncio.sleep(_ANY_PAUSE_SECONDS)
    return await call()


async def describe_topics(
    admin: AIOKafkaAdminClient, names: list[str], broker: int | None = None
) -> list[dict[str, Any]]:
    """What one broker knows of these topics, any or this. Not `describe_topics`: that makes each one that is missing,
    as Kafka's default `auto.create.topics.enable = true` has it, with one partition and one replica.
    """
    answer = await admin._send_request(MetadataRequest(names, allow_auto_topic_creation=False), broker)
    described: list[dict[str, Any]] = answer.to_object()["topics"]
    return described


async def _configs(admin: AIOKafkaAdminClient, names: list[str], wanted: bool) -> dict[str, dict[str, str]]:
    if not wanted or not names:
        return {}
    configs: dict[str, dict[str, str]] = {}
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    for response in await from_any_broker(lambda: admin.describe_configs(asked)):
        for code, text, _kind, name, entries in response.resources:
            if code == errors.TopicAuthorizationFailedError.errno:
                raise errors.TopicAuthorizationFailedError(name, "DescribeConfigs")
            if code:
                raise errors.for_code(code)(text)
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return configs


def shard_counts_of(topic_states: Mapping[Topic, TopicState], access: Access, settings: LogSettings) -> ShardCounts:
    """The partition counts, once every topic is there and they agree. Raises LogUnusable with what to do, LogNotReady
    where `eilpost topics create` has not been run yet.
    """
    missing = [access.topic(topic) for topic in ALL_TOPICS if topic not in topic_states]
    if missing:
        option = f" --tenant {access.tenant}" if access.tenant else ""
        raise LogNotReady(
            f"{access.url}: {_plural('topic', missing)} missing: run `eilpost topics create{option}`, or correct"
            f' log.prefix, now "{access.log_prefix}"'
        )
    shards = topic_states[ACCEPTED].partitions
    for topic, each in topic_states.items():
        if topic is not DISPATCHED and each.partitions != shards:
            raise LogUnusable(
                f"{access.url}: topic {topic_states[ACCEPTED].name} has {shards} partitions and {each.name} has"
                f" {each.partitions}: they must have as many; this set of topics is damaged, use another log.prefix"
            )
    _require_partition_count("log.shards", settings.shards, shards, topic_states[ACCEPTED].name)
    delivery = topic_states[DISPATCHED].partitions
    if settings.delivery_shards > delivery:
        raise LogNotReady(
            f"log.delivery_shards = {settings.delivery_shards}, but topic "
            f"{topic_states[DISPATCHED].name} has {delivery}"
            " partitions: run `eilpost topics create`, which adds what is missing"
        )
    return ShardCounts(shards, delivery)


def _require_partition_count(key: str, wanted: int, actual: int, name: str) -> None:
    if wanted and wanted != actual:
        raise LogUnusable(
            f"{key} = {wanted}, but topic {name} has {actual} partitions, and that cannot change: set {key} = {actual},"
            " or 0 for what is there"
        )


def problems(topic_states: Mapping[Topic, TopicState], settings: LogSettings) -> Iterator[Problem]:
    """What is unsafe, or not as we would make it."""
    for topic, each in topic_states.items():
        yield from _replication_problems(each, settings)
        config = each.config
        if config.get("unclean.leader.election.enable") == "true":
            yield Problem(each.name, "unclean.leader.election.enable = true can lose confirmed mail: set it to false")
        policy = config.get("cleanup.policy", "")
        if topic.compacted:
            if policy != "compact":
                yield Problem(each.name, f"cleanup.policy = {policy} removes open queue lines: set it to compact")
        elif policy != "delete":
            yield Problem(each.name, f"cleanup.policy = {policy} drops records by key: set it to delete")
        elif topic is not EVENTS:
            for key in ("retention.ms", "retention.bytes"):
                if config.get(key) != "-1":
                    yield Problem(each.name, f"{key} = {config.get(key)} removes undelivered mail: set it to -1")
        else:
            kept = settings.events_kept // _MILLISECOND
            there = int(config.get("retention.ms", "-1"))
            if 0 <= there < kept:
                yield Problem(each.name, f"retention.ms = {there} is less than log.events_kept ({kept})", fatal=False)
        if int(config.get("max.message.bytes", "0")) < RECORD_BYTES_NEEDED:
            yield Problem(
                each.name,
                f"max.message.bytes = {config.get('max.message.bytes')} is less than a record may need: set it to"
                f" {RECORD_BYTES_MAX}",
            )


def refuse_unsafe(topic_states: Mapping[Topic, TopicState], access: Access, settings: LogSettings) -> None:
    """Raises LogUnusable for topics that could lose mail."""
    unsafe = [problem for problem in problems(topic_states, settings) if problem.fatal]
    if unsafe:
        more = f" (and {len(unsafe) - 1} more: see `eilpost doctor`)" if len(unsafe) > 1 else ""
        raise LogUnusable(
            f"{access.url}: topic {unsafe[0].topic}: {unsafe[0].text}{more}; or, on a machine for trials,"
            ' log.durability = "dev"'
        )


def not_writable(topic_states: Mapping[Topic, TopicState], in_sync_needed: Mapping[Topic, int]) -> str | None:
    """A line for people when a partition has fewer replicas in sync than its topic needs to take writes, else None."""
    for topic, each in topic_states.items():
        needed = in_sync_needed.get(topic, 1)
        if each.in_sync < needed:
            return (
                f"topic {each.name}: a partition has {each.in_sync} replicas in sync and needs {needed}"
                " (min.insync.replicas): start the missing brokers"
            )
    return None


def has_fewer_replicas(topic_states: Mapping[Topic, TopicState], settings: LogSettings) -> bool:
    """Whether topics have less than `log.replication`, which is for new ones, asks for."""
    return any(each.replication < settings.replication for each in topic_states.values())


def _replication_problems(each: TopicState, settings: LogSettings) -> Iterator[Problem]:
    in_sync = int(each.config.get("min.insync.replicas", "1"))
    if each.replication < REPLICATION_SAFE:  # and min.insync.replicas = 2 would stop it at the first loss
        replicas = "1 replica" if each.replication == 1 else f"{each.replication} replicas"
        yield Problem(
            each.name,
            f"has {replicas}, and with fewer than 3 a lost node can lose mail: give it 3 by"
            " kafka-reassign-partitions.sh",
        )
    elif each.replication < settings.replication:
        yield Problem(
            each.name,
            f"has {each.replication} replicas, and log.replication = {settings.replication}: give it more by"
            " kafka-reassign-partitions.sh, or lower log.replication",
            fatal=False,
        )
    if each.replication >= REPLICATION_SAFE and in_sync < IN_SYNC_SAFE:
        yield Problem(
            each.name, f"min.insync.replicas = {in_sync}: set it to 2, so that two nodes have what we confirm"
        )
    elif each.replication >= REPLICATION_SAFE and in_sync == each.replication:
        yield Problem(
            each.name,
            f"min.insync.replicas = {in_sync} of {each.replication} replicas: one lost broker stops all mail, set it to"
            f" {each.replication - 1}",
            fatal=False,
        )
    if in_sync > each.replication:
        yield Problem(
            each.name, f"min.insync.replicas = {in_sync} with {each.replication} replicas takes no writes: lower it"
        )
    if each.in_sync < each.replication:
        yield Problem(
            each.name,
            f"has {each.in_sync} of {each.replication} replicas in sync: start the missing broker, or wait until it has"
            " caught up",
            fatal=False,
        )


async def count_live_brokers(admin: AIOKafkaAdminClient) -> int:
    """How many brokers the cluster counts in. Raises aiokafka's errors."""
    return len((await from_any_broker(admin.describe_cluster))["brokers"])


def too_few_brokers(live_brokers: int, access: Access, settings: LogSettings) -> str:
    """The line about more replicas than brokers."""
    lower = (
        "or set log.replication = 3"
        if live_brokers >= REPLICATION_SAFE
        else 'or, on a machine for trials, log.replication = 1 and log.durability = "dev"'
    )
    return (
        f"{access.url}: log.replication = {settings.replication}, and"
        f" {'1 broker is' if live_brokers == 1 else f'{live_brokers} brokers are'} there: start the others; {lower}"
    )


def _plural(noun: str, names: list[str]) -> str:
    return f"{noun} {names[0]} is" if len(names) == 1 else f"{noun}s {', '.join(names)} are"
