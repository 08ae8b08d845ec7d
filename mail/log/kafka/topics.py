"""Topics on Kafka: names, configurations, partition counts, and the safety checks.

`topic_config` keeps accepted mail from being lost: **no undelivered mail is removed by a retention limit**. Consumed
records are purged by offset (`KafkaLog.purge`), and only `events` expires by age.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from mail.log import LogNotReady, LogUnusable
from mail.log.kafka.access import RECORD_BYTES_MAX, Access
from mail.log.kafka.aiokafka_compat.clients import describe_topics
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.topics import ACCEPTED, DISPATCHED, Partitioning, ShardCounts, Topic
from mail.settings import LogSettings

T = TypeVar("T")

RECORD_BYTES_NEEDED = 6 << 20  # least `max.message.bytes`: inline content and an envelope with the usual limits
SHARDS = 12  # partitions of a new topic without a setting
REPLICATION_SAFE = 3
IN_SYNC_SAFE = 2
_ANY_TRIES = 9

_MILLISECOND = timedelta(milliseconds=1)
# Compaction keeps replay short: a log is cleaned when a tenth is dirty, segments are small, and a tombstone is kept for
# an hour, much longer than any replay takes.
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
    """A topic in the cluster."""

    name: str
    partitions: int
    replication: int  # of its least replicated partition
    in_sync: int  # of its partition with the fewest replicas in sync
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """A deviation of a topic. `fatal`: mail can be lost."""

    topic: str
    text: str
    fatal: bool


def topic_config(topic: Topic, settings: LogSettings) -> dict[str, str]:
    """The configuration of a new topic."""
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
    if not topic.consumer:
        retention_ms = str(settings.events_retention // _MILLISECOND)
        return common | {"cleanup.policy": "delete", "retention.ms": retention_ms, "retention.bytes": "-1"}
    return common | _PURGED


def partition_count(topic: Topic, settings: LogSettings) -> int:
    return ShardCounts(settings.shards or SHARDS, settings.delivery_shards or SHARDS).of(topic)


async def find_topics(
    admin: AIOKafkaAdminClient, access: Access, *, with_config: bool = True
) -> dict[Topic, TopicState]:
    """The existing topics of eilpost. Raises aiokafka's errors."""
    topics = {access.topic(topic): topic for topic in access.topics.all}
    descriptions = await from_any_broker(lambda: describe_topics(admin, list(topics)))
    for topic in descriptions:
        if topic["error_code"] == errors.TopicAuthorizationFailedError.errno:
            raise errors.TopicAuthorizationFailedError(topic["topic"])  # refused, which does not mean missing
    partitions = {topic["topic"]: topic["partitions"] for topic in descriptions if not topic["error_code"]}
    configs = await _describe_configs(admin, list(partitions)) if with_config and partitions else {}
    return {
        topics[name]: TopicState(
            name,
            len(partitions[name]),
            min(len(partition["replicas"]) for partition in partitions[name]),
            min(len(partition["isr"]) for partition in partitions[name]),
            configs.get(name, {}),
        )
        for name in partitions
        if partitions[name]
    }


async def from_any_broker(call: Callable[[], Awaitable[T]]) -> T:
    """Retry at random brokers: a dead broker stays in the metadata of the others for some seconds, and aiokafka may
    choose it. Raises aiokafka's errors.
    """
    for _ in range(_ANY_TRIES):
        try:
            return await call()
        except (errors.NodeNotReadyError, errors.KafkaConnectionError):
            await asyncio.sleep(TIMEOUTS.metadata_retry_seconds)
    return await call()


async def _describe_configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    configs: dict[str, dict[str, str]] = {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    for response in await from_any_broker(lambda: admin.describe_configs(resources)):
        for code, text, _kind, name, entries in response.resources:
            if code == errors.TopicAuthorizationFailedError.errno:
                raise errors.TopicAuthorizationFailedError(name, "DescribeConfigs")
            if code:
                raise errors.for_code(code)(text)
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return configs


def shard_counts_of(topic_states: Mapping[Topic, TopicState], access: Access, settings: LogSettings) -> ShardCounts:
    """The partition counts, if every topic exists and the counts agree. Raises LogUnusable, or LogNotReady where
    `eilpost topics create` is needed.
    """
    missing = [access.topic(topic) for topic in access.topics.all if topic not in topic_states]
    if missing:
        option = f" --tenant {access.tenant}" if access.tenant else ""
        raise LogNotReady(
            f"{access.url}: {_plural('topic', missing)} missing: run `eilpost topics create{option}`, or correct"
            f' log.prefix, now "{access.log_prefix}"'
        )
    accepted, dispatched = topic_states[ACCEPTED], topic_states[DISPATCHED]
    for topic, state in topic_states.items():
        if topic.partitioning is Partitioning.QUEUE_ID and state.partitions != accepted.partitions:
            raise LogUnusable(
                f"{access.url}: topic {accepted.name} has {accepted.partitions} partitions and {state.name} has"
                f" {state.partitions}: the numbers must be equal; this set of topics is damaged, use another log.prefix"
            )
    if settings.shards and settings.shards != accepted.partitions:
        raise LogUnusable(
            f"log.shards = {settings.shards}, but topic {accepted.name} has {accepted.partitions} partitions, and the"
            f" number cannot change: set log.shards = {accepted.partitions}, or 0 to use the topic's number"
        )
    if settings.delivery_shards > dispatched.partitions:
        raise LogNotReady(
            f"log.delivery_shards = {settings.delivery_shards}, but topic {dispatched.name} has"
            f" {dispatched.partitions} partitions: run `eilpost topics create`, which adds the missing ones"
        )
    return ShardCounts(accepted.partitions, dispatched.partitions)


def problems(topic_states: Mapping[Topic, TopicState], settings: LogSettings) -> Iterator[Problem]:
    """Unsafe or unusual configurations."""
    for topic, state in topic_states.items():
        for text, fatal in (*_replication_problems(state, settings), *_config_problems(topic, state.config, settings)):
            yield Problem(state.name, text, fatal)


def _config_problems(topic: Topic, config: Mapping[str, str], settings: LogSettings) -> Iterator[tuple[str, bool]]:
    if config.get("unclean.leader.election.enable") == "true":
        yield "unclean.leader.election.enable = true can lose confirmed mail: set it to false", True
    policy = config.get("cleanup.policy", "")
    if topic.compacted:
        if policy != "compact":
            yield f"cleanup.policy = {policy} removes queue entries: set it to compact", True
    elif policy != "delete":
        yield f"cleanup.policy = {policy} drops records by key: set it to delete", True
    elif topic.consumer:
        for key in ("retention.ms", "retention.bytes"):
            if config.get(key) != "-1":
                yield f"{key} = {config.get(key)} removes undelivered mail: set it to -1", True
    else:
        retention_ms, setting_ms = int(config.get("retention.ms", "-1")), settings.events_retention // _MILLISECOND
        if 0 <= retention_ms < setting_ms:
            yield f"retention.ms = {retention_ms} is less than log.events_retention ({setting_ms})", False
    size = config.get("max.message.bytes", "0")
    if int(size) < RECORD_BYTES_NEEDED:
        yield f"max.message.bytes = {size} is less than a record may need: set it to {RECORD_BYTES_MAX}", True


def _replication_problems(state: TopicState, settings: LogSettings) -> Iterator[tuple[str, bool]]:
    replicas, min_in_sync = state.replication, int(state.config.get("min.insync.replicas", "1"))
    add_replicas = "add replicas with kafka-reassign-partitions.sh"
    if replicas < REPLICATION_SAFE:  # min.insync.replicas = 2 would stop it at the first loss
        count = "1 replica" if replicas == 1 else f"{replicas} replicas"
        yield f"has {count}; with fewer than 3, the loss of a broker can lose mail: {add_replicas}", True
    elif replicas < settings.replication:
        yield (
            f"has {replicas} replicas, but log.replication = {settings.replication}: {add_replicas}, or lower"
            " log.replication",
            False,
        )
    if replicas >= REPLICATION_SAFE and min_in_sync < IN_SYNC_SAFE:
        yield f"min.insync.replicas = {min_in_sync}: set it to 2, so that two brokers have every confirmed record", True
    elif replicas >= REPLICATION_SAFE and min_in_sync == replicas:
        yield (
            f"min.insync.replicas = {min_in_sync} of {replicas} replicas: the loss of one broker stops all mail, set it"
            f" to {replicas - 1}",
            False,
        )
    if min_in_sync > replicas:
        yield f"min.insync.replicas = {min_in_sync} with {replicas} replicas refuses writes: lower it", True
    if state.in_sync < replicas:
        yield (
            f"has {state.in_sync} of {replicas} replicas in sync: start the missing broker, or wait until it has"
            " caught up",
            False,
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


def not_writable(topic_states: Mapping[Topic, TopicState], min_in_sync: Mapping[Topic, int]) -> str | None:
    """Text for operators when a partition has fewer in-sync replicas than it needs to accept writes, else None."""
    for topic, state in topic_states.items():
        needed = min_in_sync.get(topic, 1)
        if state.in_sync < needed:
            return (
                f"topic {state.name}: a partition has {state.in_sync} replicas in sync and needs {needed}"
                " (min.insync.replicas): start the missing brokers"
            )
    return None


def has_fewer_replicas(topic_states: Mapping[Topic, TopicState], settings: LogSettings) -> bool:
    """Whether existing topics have fewer replicas than `log.replication`, which applies to new ones."""
    return any(state.replication < settings.replication for state in topic_states.values())


async def count_live_brokers(admin: AIOKafkaAdminClient) -> int:
    """Number of live brokers in the cluster. Raises aiokafka's errors."""
    return len((await from_any_broker(admin.describe_cluster))["brokers"])


def too_few_brokers(live_brokers: int, access: Access, settings: LogSettings) -> str:
    """Text for operators: more replicas than brokers."""
    lower = (
        "or set log.replication = 3"
        if live_brokers >= REPLICATION_SAFE
        else 'or, on a machine for trials, log.replication = 1 and log.durability = "dev"'
    )
    return (
        f"{access.url}: log.replication = {settings.replication}, but only"
        f" {'1 broker is' if live_brokers == 1 else f'{live_brokers} brokers are'} running: start the others; {lower}"
    )


def _plural(noun: str, names: list[str]) -> str:
    return f"{noun} {names[0]} is" if len(names) == 1 else f"{noun}s {', '.join(names)} are"
