"""Topics on Kafka that are deleted and made anew between two looks: what was known of offsets is not true of them.

Nothing new is passed over as read or as finished before. That topics are missing for longer is journey 29.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition

from mail.log import DeliveryShard, LogUnavailable, RouterShard, ShardLost
from mail.log.kafka import topic_watcher
from mail.log.kafka.access import make_access
from mail.log.kafka.create_topics import open_admin
from mail.log.kafka.partition_reader import PartitionReader, TopicRecreated
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, Topic
from mail.record import Accepted
from mail.settings import LogSettings
from tests.contract.log_contract.harness import SOON, delivery_shard_of, read_dispatches, read_inputs, router_shard_of
from tests.support.builders.records import accepted, attempted, dispatched
from tests.support.servers.kafka_log import make_topics, running, settings_on
from tests.support.servers.ports import wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture(autouse=True)
def _without_topic_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_watcher, "POLL_SECONDS", 3600.0)


async def recreate_topics(settings: LogSettings, *topics: Topic) -> None:
    admin = await open_admin(make_access(settings))
    try:
        await admin.delete_topics([settings.prefix + topic.name for topic in topics])
    finally:
        await admin.close()
    await make_topics(settings)


class ShardOwner:
    """A role that tends its one shard as `work` says, again and again."""

    def __init__(self, own: Callable[..., Awaitable[None]], work: Callable[[Any], Awaitable[None]]) -> None:
        self._stop = asyncio.Event()

        async def process(shard: Any) -> None:
            while not self._stop.is_set():
                try:
                    await work(shard)
                except LogUnavailable:
                    await asyncio.sleep(0.1)
                    if hasattr(shard, "rewind"):
                        await shard.rewind()
                except ShardLost:
                    return

        self._task = asyncio.ensure_future(own(process, self._stop))

    async def leave(self) -> None:
        self._stop.set()
        await self._task


async def test_dispatches_of_a_new_topic_are_not_taken_for_finished_ones(kafka_bootstrap: str) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    done: list[str] = []

    async def carry(shard: DeliveryShard) -> None:
        for entry in await shard.read(10):
            await shard.finish(entry, attempted(0))
            done.append(entry.record.delivery.id)

    async with running(settings) as log:
        async with router_shard_of(log) as router:
            await router.commit([dispatched(n) for n in range(5)], [])
        owned = ShardOwner(log.own_delivery_shards, carry)
        await wait_until(lambda: len(done) == 5, what="the first five")
        await recreate_topics(settings, DISPATCHED)
        async with running(settings) as other, router_shard_of(other) as router:
            await router.commit([dispatched(n) for n in range(5, 7)], [])
        new = [dispatched(n).delivery.id for n in range(5, 7)]
        await wait_until(lambda: done[5:] == new, deadline_seconds=30, what="what is new")
        await owned.leave()


async def test_inputs_of_a_new_topic_are_read_from_its_beginning(kafka_bootstrap: str) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    routed: list[object] = []

    async def route(shard: RouterShard) -> None:
        entries = await shard.read(10, SOON)
        await shard.commit([], entries)
        routed.extend(entry.record for entry in entries if isinstance(entry.record, Accepted))

    async with running(settings) as log:
        for n in range(5):
            await log.append(accepted(n))
        owned = ShardOwner(log.own_router_shards, route)
        await wait_until(lambda: len(routed) == 5, what="the first five")
        await recreate_topics(settings, ACCEPTED, ATTEMPTED)
        async with running(settings) as other:
            for n in range(5, 7):
                await other.append(accepted(n))
        new = [accepted(n) for n in range(5, 7)]
        await wait_until(lambda: sorted(routed[5:], key=str) == new, deadline_seconds=30, what="what is new")
        await owned.leave()


@pytest.mark.parametrize("topic", [ACCEPTED, DISPATCHED])
async def test_a_mark_behind_the_end_is_of_a_topic_that_is_no_more(
    kafka_bootstrap: str, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail.log.kafka.partition_reader._TRUNCATION_SECONDS", 0.5)
    monkeypatch.setattr("mail.log.kafka.partition_reader._TRUNCATION_CHECKS", 2)
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    access = make_access(settings)
    at, role = TopicPartition(access.topic(topic), 0), "router" if topic is ACCEPTED else "delivery"
    async with running(settings) as log:
        async with router_shard_of(log) as router:
            await log.append(accepted(1))
            await router.commit([dispatched(1)], [])
        consumer = AIOKafkaConsumer(group_id=access.group(role), enable_auto_commit=False, **access.client_options())
        await consumer.start()
        consumer.assign([at])
        await consumer.commit({at: OffsetAndMetadata(4711, "")})
        await consumer.stop()
        if topic is ACCEPTED:
            async with router_shard_of(log) as router:
                await doubted(router.rewind)
                assert [entry.record for entry in await read_inputs(router, 1)] == [accepted(1)]
        else:
            async with delivery_shard_of(log) as shard:
                await doubted(lambda: shard.read(1, SOON))
                assert [entry.record for entry in await read_dispatches(shard, 1)] == [dispatched(1)]


async def doubted(look: Callable[[], Awaitable[object]]) -> None:
    """One broker's word is not entries: it may have slept, or be cut off."""
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="ends before its committed offset"):
            await look()
        await asyncio.sleep(0.6)


async def test_a_broker_that_was_behind_is_not_believed_when_it_has_caught_up(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as log:
        for number in range(3):
            await log.append(accepted(number))
        at = make_access(settings).partition(ACCEPTED, 0)
        reader = PartitionReader(make_access(settings), [at])
        ends = AIOKafkaConsumer.end_offsets

        async def behind(*_: object) -> dict[TopicPartition, int]:
            return {at: 1}

        monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", behind)
        for _ in range(3):
            with pytest.raises(LogUnavailable):
                await reader.open({at: 2})
        monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", ends)
        await reader.open({at: 2})
        assert reader.position(at) == 2
        await reader.close()


async def test_a_reader_that_was_stuck_does_not_go_back_in_silence(kafka_bootstrap: str) -> None:
    """It is made anew, on a topic that was: what its shard knows of offsets is not true of that."""
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as log:
        await log.append(accepted(1))
        at = make_access(settings).partition(ACCEPTED, 0)
        reader = PartitionReader(make_access(settings), [at])
        await reader.open({at: None})
        assert await reader.read(1, 5.0)
        reader._positions[at] += 5
        reader._offsets_beyond_end[at] = float("-inf"), 1000
        reader._is_stuck = True
        with pytest.raises(TopicRecreated):
            await reader.read(1, 0.0)
        await reader.close()
