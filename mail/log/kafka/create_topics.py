"""Creation of missing topics and of additional partitions of `dispatched`, for `eilpost topics create`.

Existing configurations are not changed. The functions return when every broker has the new metadata.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from mail.log import LogUnusable
from mail.log.kafka.access import CLIENT_ERRORS, Access, error_message, is_refusal
from mail.log.kafka.aiokafka_compat.clients import describe_topics
from mail.log.kafka.diagnose import explain_failure, require_broker
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.kafka.topics import (
    TopicState,
    count_live_brokers,
    find_topics,
    from_any_broker,
    has_fewer_replicas,
    partition_count,
    shard_counts_of,
    too_few_brokers,
    topic_config,
)
from mail.log.topics import DISPATCHED, Partitioning, Topic
from mail.settings import LogSettings

_PROPAGATION_TRIES = 50


async def create_missing(admin: AIOKafkaAdminClient, access: Access, settings: LogSettings) -> list[str]:
    """Create missing topics and partitions of `dispatched`; returns one line per action. Idempotent. Raises
    LogUnusable.
    """
    try:
        return await _create_missing(admin, access, settings)
    except CLIENT_ERRORS as error:
        see = "" if is_refusal(error) else ": see the brokers' logs"
        raise LogUnusable(f"{access.url}: topics cannot be created: {error_message(error)}{see}") from None


async def _create_missing(admin: AIOKafkaAdminClient, access: Access, settings: LogSettings) -> list[str]:
    actions: list[str] = []
    topic_states = await find_topics(admin, access, with_config=False)
    missing = [topic for topic in access.topics.all if topic not in topic_states]
    new = [
        NewTopic(
            access.topic(topic),
            _partition_count(topic_states, topic, settings),
            settings.replication,
            topic_configs=topic_config(topic, settings),
        )
        for topic in missing
    ]
    if new:
        response = await admin.create_topics(new)
        for name, code, *text in response.topic_errors:
            kind = errors.for_code(code)
            if kind is errors.InvalidReplicationFactorError:
                raise LogUnusable(too_few_brokers(await count_live_brokers(admin), access, settings))
            if kind is errors.TopicAuthorizationFailedError:
                raise kind(name, "Create")
            if code and kind is not errors.TopicAlreadyExistsError:
                raise LogUnusable(
                    f"{access.url}: topic {name} cannot be created: {error_message(kind())}"
                    f"{f' ({text[0]})' if text and text[0] else ''}; log.replication = {settings.replication}"
                )
            if not code:
                partitions = next(topic.num_partitions for topic in new if topic.name == name)
                actions.append(f"{name}: created, partitions: {partitions}, replicas: {settings.replication}")
        await _wait_until_propagated(admin, access, missing)
    if has_fewer_replicas(topic_states, settings):
        live_brokers = await count_live_brokers(admin)
        if live_brokers < settings.replication:
            raise LogUnusable(too_few_brokers(live_brokers, access, settings))
    dispatched = topic_states.get(DISPATCHED)
    if dispatched is not None and dispatched.partitions < settings.delivery_shards:
        try:
            await admin.create_partitions({dispatched.name: NewPartitions(settings.delivery_shards)})
        except errors.TopicAuthorizationFailedError:
            raise errors.TopicAuthorizationFailedError(dispatched.name, "Alter") from None
        actions.append(f"{dispatched.name}: {dispatched.partitions} -> {settings.delivery_shards} partitions")
        await _wait_until_propagated(admin, access, [DISPATCHED], settings.delivery_shards)
    shard_counts_of(await find_topics(admin, access, with_config=False), access, settings)
    return actions


def _partition_count(topic_states: Mapping[Topic, TopicState], topic: Topic, settings: LogSettings) -> int:
    """The count of the existing topics, if some are missing; else that of the settings."""
    by_queue_id = Partitioning.QUEUE_ID
    counts = {state.partitions for existing, state in topic_states.items() if existing.partitioning is by_queue_id}
    if topic.partitioning is by_queue_id and not settings.shards and len(counts) == 1:
        return counts.pop()
    return partition_count(topic, settings)


async def _wait_until_propagated(
    admin: AIOKafkaAdminClient, access: Access, topics: Sequence[Topic], min_partitions: int = 1
) -> None:
    """Brokers learn of new metadata one after another, and the next client may use any of them."""
    names = [access.topic(topic) for topic in topics]
    for _ in range(_PROPAGATION_TRIES):
        brokers = (await from_any_broker(admin.describe_cluster))["brokers"]
        checks = [_is_propagated(admin, names, min_partitions, broker["node_id"]) for broker in brokers]
        if all(await asyncio.gather(*checks)):
            return
        await asyncio.sleep(TIMEOUTS.metadata_retry_seconds)


async def _is_propagated(admin: AIOKafkaAdminClient, names: list[str], min_partitions: int, broker: int) -> bool:
    try:
        topics = await describe_topics(admin, names, broker)
    except errors.KafkaError:
        return True  # it serves no clients, and catches up before it does
    return all(not topic["error_code"] and len(topic["partitions"]) >= min_partitions for topic in topics)


async def open_admin(access: Access) -> AIOKafkaAdminClient:
    """A started admin client. Raises LogUnusable when no broker answers."""
    await require_broker(access)
    admin = access.admin()
    try:
        await admin.start()
    except CLIENT_ERRORS as error:
        await admin.close()
        raise LogUnusable(await explain_failure(access, error)) from None
    return admin
