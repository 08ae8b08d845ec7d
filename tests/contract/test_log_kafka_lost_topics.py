"""Topics that are deleted and recreated between two checks: offsets of the old topic do not apply to the new one.

No new record counts as read or finished. Topics that stay missing are the subject of journey 29.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition

from mail.log import DeliveryShard, LogUnavailable, RouterShard, ShardLost
from mail.log.kafka.access import make_access
from mail.log.kafka.create_topics import open_admin
from mail.log.kafka.partition_reader import PartitionReader, TopicRecreated
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, Topic
from mail.record import Accepted
from mail.settings import LogSettings
from tests.contract.log_contract.harness import SOON, delivery_shard_of, read_dispatches, read_inputs, router_shard_of
from tests.support.builders.records import accepted, attempted, dispatched
from tests.support.kafka_timeouts import set_timeouts
from tests.support.servers.kafka_log import make_topics, running, settings_on
from tests.support.servers.ports import wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture(autouse=True)
def _without_topic_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, watch_seconds=3600.0)


async def recreate_topics(settings: LogSettings, *topics: Topic) -> None:
    admin = await open_admin(make_access(settings))
    try:
        await admin.delete_topics([settings.prefix + topic.name for topic in topics])
    finally:
        await admin.close()
    await make_topics(settings)


class ShardOwner:
    """A role that calls `work` with its one shard in a loop."""

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


async def test_dispatches_of_a_recreated_topic_do_not_count_as_finished(kafka_bootstrap: str) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    done: list[str] = []

    async def deliver(shard: DeliveryShard) -> None:
        for entry in await shard.read(10):
            await shard.finish(entry, attempted(0))
            done.append(entry.record.delivery.id)

    async with running(settings) as log:
        async with router_shard_of(log) as router:
            await router.commit([dispatched(n) for n in range(5)], [])
        owned = ShardOwner(log.own_delivery_shards, deliver)
        await wait_until(lambda: len(done) == 5, what="the first five")
        await recreate_topics(settings, DISPATCHED)
        async with running(settings) as other, router_shard_of(other) as router:
            await router.commit([dispatched(n) for n in range(5, 7)], [])
        new = [dispatched(n).delivery.id for n in range(5, 7)]
        await wait_until(lambda: done[5:] == new, deadline_seconds=30, what="the new records")
        await owned.leave()


async def test_inputs_of_a_recreated_topic_are_read_from_its_beginning(kafka_bootstrap: str) -> None:
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
        await wait_until(lambda: sorted(routed[5:], key=str) == new, deadline_seconds=30, what="the new records")
        await owned.leave()


@pytest.mark.parametrize("topic", [ACCEPTED, DISPATCHED])
async def test_a_committed_offset_beyond_the_end_restarts_at_the_first_record(
    kafka_bootstrap: str, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_timeouts(monkeypatch, truncation_seconds=0.5)
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
                await refused_at_first(router.rewind)
                assert [entry.record for entry in await read_inputs(router, 1)] == [accepted(1)]
        else:
            async with delivery_shard_of(log) as shard:
                await refused_at_first(lambda: shard.read(1, SOON))
                assert [entry.record for entry in await read_dispatches(shard, 1)] == [dispatched(1)]


async def refused_at_first(read: Callable[[], Awaitable[object]]) -> None:
    """One broker's answer is not sufficient, because it may have been paused or disconnected."""
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="ends before its committed offset"):
            await read()
        await asyncio.sleep(0.6)


async def test_an_end_offset_of_a_lagging_broker_is_not_used(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as log:
        for number in range(3):
            await log.append(accepted(number))
        at = make_access(settings).partition(ACCEPTED, 0)
        reader = PartitionReader(make_access(settings), [at])
        ends = AIOKafkaConsumer.end_offsets

        async def lagging(*_: object) -> dict[TopicPartition, int]:
            return {at: 1}

        monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", lagging)
        for _ in range(3):
            with pytest.raises(LogUnavailable):
                await reader.open({at: 2})
        monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", ends)
        await reader.open({at: 2})
        assert reader.position(at) == 2
        await reader.close()


async def test_a_reopened_reader_reports_a_recreated_topic(kafka_bootstrap: str) -> None:
    """A stuck reader is reopened on a topic that was recreated: its offsets do not apply."""
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as log:
        await log.append(accepted(1))
        at = make_access(settings).partition(ACCEPTED, 0)
        reader = PartitionReader(make_access(settings), [at])
        await reader.open({at: None})
        assert await reader.read(1, 5.0)
        reader._positions[at] += 5
        reader._beyond_end[at] = float("-inf"), 1000
        reader._is_stuck = True
        with pytest.raises(TopicRecreated):
            await reader.read(1, 0.0)
        await reader.close()
