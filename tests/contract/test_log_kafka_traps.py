"""Surprising behaviour of aiokafka and of group coordinators, and the log's handling of it, on a real Kafka.

A loading coordinator returns an empty answer; an excluded member commits without a generation; a dead heartbeat task is
not reported; a reader gets stuck; an unreadable record follows readable ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import OffsetAndMetadata, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.commit import OffsetCommitRequest

from mail.log import DeliveryShard, LogUnavailable, LogUnusable, ShardLost
from mail.log.codec import encode
from mail.log.kafka.access import Access, make_access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.partition_reader import PartitionReader
from mail.log.kafka.router_shard import KafkaRouterShard
from mail.log.topics import ACCEPTED, DISPATCHED
from tests.contract.log_contract.harness import (
    delivery_shard_of,
    read_dispatches,
    read_inputs,
    records_of,
    router_shard_of,
)
from tests.contract.test_log_kafka_ownership import ShardOwner
from tests.support.builders.records import accepted, attempted, dispatched
from tests.support.kafka_timeouts import set_timeouts
from tests.support.servers.kafka_log import append_frame, running, settings_on
from tests.support.servers.ports import wait_until

pytestmark = pytest.mark.kafka


async def test_unanswered_offset_fetch_is_not_an_empty_answer(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    at = TopicPartition(settings.prefix + DISPATCHED.name, 0)
    fetch = AIOKafkaAdminClient.list_consumer_group_offsets
    empty_answers = 3

    async def loading(self: AIOKafkaAdminClient, *arguments: Any, **more: Any) -> Any:
        nonlocal empty_answers
        empty_answers -= 1
        return {} if empty_answers >= 0 else await fetch(self, *arguments, **more)

    async with running(settings) as log, ClusterInfo(make_access(settings)) as cluster_info:
        async with router_shard_of(log) as router:
            await router.commit([dispatched(n) for n in range(3)], [])
        async with delivery_shard_of(log) as shard:
            for n, entry in enumerate(await read_dispatches(shard, 3)):
                await shard.finish(entry, attempted(n))
        monkeypatch.setattr(AIOKafkaAdminClient, "list_consumer_group_offsets", loading)
        committed = await cluster_info.committed_offsets(f"{settings.prefix}delivery", [at])  # retries empty answers
        assert committed[at].offset >= 3
        empty_answers = 1_000_000
        set_timeouts(monkeypatch, query_seconds=1.0)
        with pytest.raises(LogUnavailable):
            await cluster_info.committed_offsets(f"{settings.prefix}delivery", [at])


async def test_an_excluded_member_commits_nothing(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group is empty, so the broker would accept a commit without a generation: only this client refuses it."""
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    group = f"{settings.prefix}delivery"
    at = TopicPartition(settings.prefix + DISPATCHED.name, 0)
    async with running(settings) as log, ClusterInfo(make_access(settings)) as cluster_info:
        owner = ShardOwner(log.own_delivery_shards)
        await owner.owns(1)
        member = log._delivery
        assert member is not None
        assert member._consumer is not None
        await member.commit({at: OffsetAndMetadata(7, "")})
        coordinator: GroupCoordinator = member._consumer._coordinator
        send = AIOKafkaConnection.send
        client = member._consumer._client

        def send_unless_cut(connection: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
            to_coordinator = [
                other for (_, kind), other in client._conns.items() if kind == ConnectionGroup.COORDINATION
            ]
            if connection in to_coordinator and not isinstance(request, OffsetCommitRequest):
                raise KafkaConnectionError("only commits reach the coordinator")
            return send(connection, request, expect_response)

        monkeypatch.setattr(AIOKafkaConnection, "send", send_unless_cut)
        async with asyncio.timeout(40):
            while (await cluster_info.describe_groups([group]))[group][1]:
                await asyncio.sleep(0.2)
        # As after UnknownMemberId, before the member rejoins.
        generation, coordinator.generation = coordinator.generation, -1
        with pytest.raises(ShardLost):
            await member.commit({at: OffsetAndMetadata(3, "")})
        assert (await cluster_info.committed_offsets(group, [at]))[at].offset == 7
        coordinator.generation = generation
        monkeypatch.undo()
        await owner.leave()


async def test_a_member_whose_heartbeat_task_died_rejoins_the_group(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_on(kafka_bootstrap, shards=2, delivery_shards=1)
    do_heartbeat = GroupCoordinator._do_heartbeat
    fails_next = False

    async def once(self: GroupCoordinator) -> bool:
        nonlocal fails_next
        if fails_next:
            fails_next = False
            raise KafkaError("an unknown error code")
        return bool(await do_heartbeat(self))

    monkeypatch.setattr(GroupCoordinator, "_do_heartbeat", once)
    async with running(settings) as log:
        owner = ShardOwner(log.own_router_shards)
        await owner.owns(2)
        before = list(owner.processed)
        fails_next = True
        await wait_until(lambda: len(owner.processed) >= len(before) + 2, deadline_seconds=30, what="owning both again")
        await owner.owns(2)
        async with ClusterInfo(make_access(settings)) as cluster_info:
            assert (await cluster_info.describe_groups([f"{settings.prefix}router"]))[f"{settings.prefix}router"][
                1
            ] == 1
        await owner.leave()


async def test_a_reader_opens_without_aiokafkas_retry_pause(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka pauses after a request whose leaders it does not know, which would delay each change of owner."""
    client = Access.client_options

    def with_long_pause(self: Access, *arguments: float) -> dict[str, Any]:
        return {**client(self, *arguments), "retry_backoff_ms": 20_000}

    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings):
        access = make_access(settings)
        partitions = [access.partition(topic, 0) for topic in (ACCEPTED, DISPATCHED)]
        async with ClusterInfo(access) as cluster_info:
            await cluster_info.end_offsets(partitions)  # every partition has its leader
        monkeypatch.setattr(Access, "client_options", with_long_pause)
        reader = PartitionReader(access, partitions)
        async with asyncio.timeout(5):
            await reader.open(dict.fromkeys(partitions))
        await reader.close()


async def test_a_stuck_reader_is_reopened(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, stuck_seconds=0.5, stuck_recheck_seconds=0.3)
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as log:
        async with router_shard_of(log) as router:
            await router.commit([dispatched(0)], [])
        offsets: list[int] = []

        async def process(shard: DeliveryShard) -> None:
            while True:
                for entry in await shard.read(10):
                    offsets.append(entry.offset)

        stop = asyncio.Event()
        delivery = asyncio.ensure_future(log.own_delivery_shards(process, stop))
        await wait_until(lambda: len(offsets) == 1, what="the first")
        assert log._delivery is not None
        (shard,) = log._delivery.shards
        consumer = shard._reader._consumer
        assert consumer is not None
        consumer.pause(shard.partition)  # it fetches nothing more, without an error
        async with router_shard_of(log) as router:
            await router.commit([dispatched(1)], [])
        await wait_until(lambda: len(offsets) == 2, deadline_seconds=20, what="the second record, from a new consumer")
        stop.set()
        await delivery


async def test_records_that_a_lost_shard_did_not_return_are_not_committed(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    fetched, read = asyncio.Event(), PartitionReader.read

    async def slow(
        self: PartitionReader, limit: int, wait_seconds: float, partitions: Sequence[TopicPartition] = ()
    ) -> Any:
        records = await read(self, limit, wait_seconds, partitions)
        if records and wait_seconds:
            fetched.set()
            await asyncio.sleep(60)
        return records

    async with running(settings) as log:
        for n in range(3):
            await log.append(accepted(n))
        async with router_shard_of(log) as router:
            first = await read_inputs(router, 3)
            assert isinstance(router, KafkaRouterShard)
            assert not await router.read(10, timedelta(seconds=0.2))
            monkeypatch.setattr(PartitionReader, "read", slow)
            read_task = asyncio.ensure_future(router.read(10, timedelta(seconds=30)))
            await asyncio.sleep(0.1)
            await log.append(accepted(3))
            await fetched.wait()
            router.revoke()
            with pytest.raises(ShardLost):
                await read_task
            await router.commit([], first)
            monkeypatch.undo()
        async with router_shard_of(log) as router:
            assert records_of(await read_inputs(router, 1)) == [accepted(3)]


async def test_a_member_without_confirmed_heartbeats_starts_no_deliveries(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its connection to the coordinator is cut: it can read, deliver and report, while another owner has its
    shard.
    """
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as log, running(settings) as other, running(settings) as reporting:
        read_by: dict[str, list[int]] = {"first": [], "second": []}
        stop = asyncio.Event()

        def process_as(name: str) -> Callable[[DeliveryShard], Awaitable[None]]:
            async def process(shard: DeliveryShard) -> None:
                while not stop.is_set():
                    for entry in await shard.read(10):
                        read_by[name].append(entry.offset)
                        await shard.finish(entry, attempted(1))

            return process

        first = asyncio.ensure_future(log.own_delivery_shards(process_as("first"), stop))
        await wait_until(lambda: log._delivery is not None and bool(log._delivery.assigned), what="the first owner")
        assert log._delivery is not None
        assert log._delivery._consumer is not None
        send = AIOKafkaConnection.send
        client = log._delivery._consumer._client

        def send_unless_cut(connection: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
            to_coordinator = [
                other for (_, group), other in client._conns.items() if group == ConnectionGroup.COORDINATION
            ]
            if connection in to_coordinator:
                raise KafkaConnectionError("the connection to the coordinator is cut")
            return send(connection, request, expect_response)

        monkeypatch.setattr(AIOKafkaConnection, "send", send_unless_cut)
        second = asyncio.ensure_future(other.own_delivery_shards(process_as("second"), stop))
        for begin in range(0, 60, 15):
            async with router_shard_of(reporting) as router:
                for n in range(begin, begin + 15):
                    await router.commit([dispatched(n)], [])
                    await asyncio.sleep(0.25)
        await wait_until(lambda: len(set(read_by["first"] + read_by["second"])) == 60, deadline_seconds=30, what="all")
        stop.set()
        monkeypatch.undo()
        await asyncio.gather(first, second)
        last = max(read_by["first"])
        # The second owner processed them after the first had stopped.
        assert sum(offset > last for offset in read_by["second"]) > 5
        assert len(read_by["first"]) < 60


async def test_records_before_an_unreadable_one_are_read(kafka_bootstrap: str) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as log:
        for n in range(3):
            await log.append(accepted(n))
        frame = bytearray(encode(accepted(9)) or b"")
        frame[2] = 9
        await append_frame(settings, ACCEPTED, 0, bytes(frame))
        await log.append(accepted(3))
        for _ in range(2):
            async with router_shard_of(log) as router:
                good = await read_inputs(router, 3)
                assert records_of(good) == [accepted(n) for n in range(3)]
                with pytest.raises(LogUnusable, match="offset 3"):
                    await router.read(10, timedelta(seconds=1))
        async with router_shard_of(log) as router:
            await router.commit([dispatched(n) for n in range(2)], await read_inputs(router, 3))
        bad = bytearray(encode(dispatched(9)) or b"")
        bad[2] = 9
        await append_frame(settings, DISPATCHED, 0, bytes(bad))
        async with delivery_shard_of(log) as shard:
            entries = await read_dispatches(shard, 2)
            for n, entry in enumerate(entries):
                await shard.finish(entry, attempted(n))
            with pytest.raises(LogUnusable, match="version is 9"):
                await shard.read(10)
        async with delivery_shard_of(log) as shard:
            with pytest.raises(LogUnusable, match="version is 9"):
                await shard.read(10)
