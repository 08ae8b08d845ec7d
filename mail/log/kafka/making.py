"""Makes the topics that are missing, as `eilpost topics create` does, and lets `dispatched` grow.

What is there is left as it is: a changed configuration has a reason, and whoever has it should know. It returns when
every broker knows what was made. Next: `mail/log/kafka/presence.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from mail.log import LogUnusable
from mail.log.kafka.access import FAULTS, Access, is_refusal, reason
from mail.log.kafka.reaching import explain, reach_any
from mail.log.kafka.topics import (
    Found,
    brokers_alive,
    counts_of,
    describe,
    fewer_replicas,
    look,
    of_any,
    too_few,
    wanted_config,
    wanted_partitions,
)
from mail.log.topics import ALL_TOPICS, DISPATCHED, Topic
from mail.settings import LogSettings

_SEEN_TRIES, _SEEN_PAUSE_SECONDS = 50, 0.1


async def create(admin: AIOKafkaAdminClient, access: Access, settings: LogSettings) -> list[str]:
    """Make what is missing: topics, and partitions of `dispatched`. What was done, a line each. Idempotent. Raises
    LogUnusable.
    """
    try:
        return await _create(admin, access, settings)
    except FAULTS as error:
        see = "" if is_refusal(error) else ": see the brokers' logs"
        raise LogUnusable(f"{access.where}: topics cannot be made: {reason(error)}{see}") from None


async def _create(admin: AIOKafkaAdminClient, access: Access, settings: LogSettings) -> list[str]:
    done: list[str] = []
    found = await look(admin, access, with_config=False)
    missing = [topic for topic in ALL_TOPICS if topic not in found]
    new = [
        NewTopic(
            access.topic(topic),
            _partitions_beside(found, topic, settings),
            settings.replication,
            topic_configs=wanted_config(topic, settings),
        )
        for topic in missing
    ]
    if new:
        response = await admin.create_topics(new)
        for name, code, *text in response.topic_errors:
            kind = errors.for_code(code)
            if kind is errors.InvalidReplicationFactorError:
                raise LogUnusable(too_few(await brokers_alive(admin), access, settings))
            if kind is errors.TopicAuthorizationFailedError:
                raise kind(name, "Create")
            if code and kind is not errors.TopicAlreadyExistsError:
                raise LogUnusable(
                    f"{access.where}: topic {name} cannot be made: {reason(kind())}"
                    f"{f' ({text[0]})' if text and text[0] else ''}; log.replication = {settings.replication}"
                )
            if not code:
                made = next(each for each in new if each.name == name)
                done.append(f"{name}: made, partitions: {made.num_partitions}, replicas: {settings.replication}")
        await _until_seen(admin, access, missing)
    if fewer_replicas(found, settings) and (alive := await brokers_alive(admin)) < settings.replication:
        raise LogUnusable(too_few(alive, access, settings))
    dispatched = found.get(DISPATCHED)
    if dispatched is not None and dispatched.partitions < settings.delivery_shards:
        try:
            await admin.create_partitions({dispatched.name: NewPartitions(settings.delivery_shards)})
        except errors.TopicAuthorizationFailedError:
            raise errors.TopicAuthorizationFailedError(dispatched.name, "Alter") from None
        done.append(f"{dispatched.name}: {dispatched.partitions} -> {settings.delivery_shards} partitions")
        await _until_seen(admin, access, [DISPATCHED], settings.delivery_shards)
    counts_of(await look(admin, access, with_config=False), access, settings)
    return done


def _partitions_beside(found: Mapping[Topic, Found], topic: Topic, settings: LogSettings) -> int:
    """As many as the topics that are there have: of a set of which some are lost, the others tell."""
    there = {each.partitions for other, each in found.items() if other is not DISPATCHED}
    if topic is not DISPATCHED and not settings.shards and len(there) == 1:
        return there.pop()
    return wanted_partitions(topic, settings)


async def _until_seen(admin: AIOKafkaAdminClient, access: Access, topics: Sequence[Topic], least: int = 1) -> None:
    """Each broker hears a little later of what the controller has made, and whoever starts next may ask any of them."""
    names = [access.topic(topic) for topic in topics]
    for _ in range(_SEEN_TRIES):
        brokers = [each["node_id"] for each in (await of_any(admin.describe_cluster))["brokers"]]
        if all(await asyncio.gather(*(_is_seen(admin, names, least, broker) for broker in brokers))):
            return
        await asyncio.sleep(_SEEN_PAUSE_SECONDS)


async def _is_seen(admin: AIOKafkaAdminClient, names: list[str], least: int, broker: int) -> bool:
    try:
        described = await describe(admin, names, broker)
    except errors.KafkaError:
        return True  # it does not serve, and catches up before it does
    return all(not each["error_code"] and len(each["partitions"]) >= least for each in described)


async def open_admin(access: Access) -> AIOKafkaAdminClient:
    """A started admin client. Raises LogUnusable when no broker answers."""
    await reach_any(access)
    admin = access.admin()
    try:
        await admin.start()
    except FAULTS as error:
        await admin.close()
        raise LogUnusable(await explain(access, error)) from None
    return admin
