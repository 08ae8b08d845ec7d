"""Kafka log with several processes: moving shards, stale owners, and committed offsets that the next owner uses.

Two `KafkaLog`s of one test stand for two processes; tests/faults/ kills and freezes real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import cast

import pytest
from aiokafka import TopicPartition
from msgspec.structs import replace

from mail.log import DeliveryShard, Entry, RouterShard, ShardLost
from mail.log.codec import encode
from mail.log.kafka import KafkaLog
from mail.log.kafka.access import make_access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.committed_offset import OffsetTracker
from mail.log.kafka.create_topics import create_missing, open_admin
from mail.log.kafka.transactional_producer import TransactionalProducer, batch_by_partition
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, place
from mail.record import Attempted, Dispatched
from mail.route import ToMx
from mail.settings import LogSettings
from tests.contract.log_contract.harness import (
    delivery_shard_of,
    read_dispatches,
    read_inputs,
    records_of,
    replay_all,
    router_shard_of,
)
from tests.support.builders.records import (
    accepted,
    attempted,
    dispatched,
    event,
    frame_of_version,
    queue_entry,
    queue_id,
)
from tests.support.kafka_timeouts import set_timeouts
from tests.support.servers.kafka_log import append_frame, make_topics, running, settings_on
from tests.support.servers.ports import wait_until

pytestmark = pytest.mark.kafka

SOON = timedelta(seconds=5)


class ShardOwner:
    """A router or delivery process that owns the assigned shards and reads nothing."""

    def __init__(self, own: Callable[..., Awaitable[None]]) -> None:
        self.stop = asyncio.Event()
        self.shards: dict[int, RouterShard | DeliveryShard] = {}
        self.processed: list[int] = []
        self._task = asyncio.ensure_future(own(self._process, self.stop))

    async def _process(self, shard: RouterShard | DeliveryShard) -> None:
        self.processed.append(shard.number)
        self.shards[shard.number] = shard
        try:
            await cast("DeliveryShard", shard).lost.wait()
        finally:
            self.shards.pop(shard.number, None)

    async def leave(self) -> None:
        self.stop.set()
        await self._task

    async def owns(self, count: int) -> None:
        await wait_until(lambda: len(self.shards) == count, what=f"owning {count} shards, not {sorted(self.shards)}")


async def test_a_stale_owner_commits_nothing(kafka_bootstrap: str) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as log:
        await log.append(accepted(1))
        async with router_shard_of(log) as stale:
            inputs = await read_inputs(stale, 1)
            next_owner = TransactionalProducer(make_access(settings), f"{settings.prefix}router", 0, 5)
            await next_owner.open()
            with pytest.raises(ShardLost):
                await stale.commit([queue_entry(1), dispatched(1), event(1)], inputs)
            await next_owner.commit(batch_by_partition([queue_entry(2)], log.counts, make_access(settings)), {})
            await next_owner.close()
        async with router_shard_of(log) as shard:
            assert await replay_all(shard) == [queue_entry(2)]
            assert records_of(await read_inputs(shard, 1)) == [accepted(1)]
        assert [e async for e in log.history(queue_id(1))] == []
        assert (await log.backlog()).dispatched == 0


async def test_the_next_owner_ends_the_open_transaction_of_a_stale_owner(kafka_bootstrap: str) -> None:
    """A transaction that was never ended hides no records once the shard has its next owner."""
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as log:
        group = f"{settings.prefix}router"
        killed = TransactionalProducer(make_access(settings), group, 0, 5)
        await killed.open()
        producer = killed._producer
        assert producer is not None
        await producer.begin_transaction()
        frame = encode(dispatched(1)) or b""
        await (await producer.send(settings.prefix + DISPATCHED.name, frame, b"k", 0))
        async with router_shard_of(log) as shard, delivery_shard_of(log) as deliverer:
            await shard.commit([dispatched(2)], [])
            assert [e.record for e in await read_dispatches(deliverer, 1)] == [dispatched(2)]
        await killed.close()


async def test_a_joining_router_does_not_interrupt_the_other_shards(kafka_bootstrap: str) -> None:
    settings = settings_on(kafka_bootstrap, shards=4, delivery_shards=1)
    async with running(settings) as first_log, running(settings) as second_log:
        first = ShardOwner(first_log.own_router_shards)
        await first.owns(4)
        second = ShardOwner(second_log.own_router_shards)
        await second.owns(2)
        await first.owns(2)
        assert not set(first.shards) & set(second.shards)
        assert sorted(first.processed) == [0, 1, 2, 3]  # the remaining shards were not interrupted
        await second.leave()
        await first.owns(4)
        await first.leave()


async def test_deliveries_finished_during_a_drain_are_committed(kafka_bootstrap: str) -> None:
    """The shard is revoked while its owner is busy: the next owner does not get what the owner finishes during the
    drain.
    """
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as first_log, running(settings) as second_log:
        async with router_shard_of(first_log) as router:
            await router.commit([dispatched(n) for n in range(6)], [])
        revoked = asyncio.Event()

        async def work(shard: DeliveryShard) -> None:
            entries = await read_dispatches(shard, 6)
            await shard.finish(entries[4], attempted(4))
            with pytest.raises(ShardLost):
                await shard.read(1)
            revoked.set()
            await asyncio.sleep(0.3)
            await shard.finish(entries[1], attempted(1))

        stop = asyncio.Event()
        busy = asyncio.ensure_future(first_log.own_delivery_shards(work, stop))
        await asyncio.sleep(1.5)
        stop.set()
        await revoked.wait()
        async with delivery_shard_of(second_log) as deliverer:
            again = [entry.record for entry in await read_dispatches(deliverer, 4)]
        await busy
        assert again == [dispatched(n) for n in (0, 2, 3, 5)]


async def test_a_drain_that_takes_too_long_is_cancelled(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the drain time-out the next owner gets all unfinished entries, and later finishes of the first owner are
    refused.
    """
    set_timeouts(monkeypatch, drain_seconds=0.5)
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=2)

    def dispatch_to_site(n: int) -> Dispatched:
        return dispatched(n, ToMx(f"d{n}.test", ((10, f"mx{n}.test"),)))

    stuck: dict[int, tuple[DeliveryShard, list[Entry[Dispatched]]]] = {}
    cancelled: list[int] = []
    started_after: dict[int, list[int]] = {}  # by the second owner: the shards cancelled until then
    again: list[Entry[Dispatched]] = []

    async with running(settings) as first_log, running(settings) as second_log:
        shards = {n: place(dispatch_to_site(n), first_log.counts).shard for n in range(20)}

        async def hang(shard: DeliveryShard) -> None:
            if shard.number in stuck:  # the shard that stays here, processed again
                await shard.lost.wait()
                return
            entries = await read_dispatches(shard, sum(number == shard.number for number in shards.values()))
            await shard.finish(entries[1], _report(entries[1]))
            stuck[shard.number] = shard, entries
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(shard.number)
                raise

        async def take(shard: DeliveryShard) -> None:
            started_after[shard.number] = list(cancelled)
            again.extend(await read_dispatches(shard, len(stuck[shard.number][1]) - 1))
            await shard.lost.wait()

        async with router_shard_of(first_log) as router:
            await router.commit([dispatch_to_site(n) for n in shards], [])
        stop = asyncio.Event()
        first = asyncio.ensure_future(first_log.own_delivery_shards(hang, stop))
        await wait_until(lambda: len(stuck) == 2, what="both shards to be processed")
        second = asyncio.ensure_future(second_log.own_delivery_shards(take, stop))
        await wait_until(lambda: again, deadline_seconds=30, what="the second owner's entries")
        ((number, before),) = started_after.items()
        assert number in before
        shard, entries = stuck[number]
        assert again == [entry for entry in entries if entry is not entries[1]]
        with pytest.raises(ShardLost):
            await shard.finish(entries[0], _report(entries[0]))
        stop.set()
        await asyncio.gather(first, second)
        async with router_shard_of(first_log) as router:
            reports = records_of(await read_inputs(router, 2))
            assert not await router.read(10, timedelta(0))
    wanted = [_report(entries[1]) for _, entries in stuck.values()]
    assert sorted(reports, key=repr) == sorted(wanted, key=repr)


def _report(entry: Entry[Dispatched]) -> Attempted:
    return replace(attempted(), delivery_id=entry.record.delivery.id)


async def test_offsets_are_committed_during_processing(kafka_bootstrap: str) -> None:
    """So SIGKILL repeats only what was in flight: the test checks before anything is closed."""
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    at = TopicPartition(settings.prefix + DISPATCHED.name, 0)
    async with running(settings) as log, ClusterInfo(make_access(settings)) as cluster_info:
        async with router_shard_of(log) as router:
            await router.commit([dispatched(n) for n in range(10)], [])
        async with delivery_shard_of(log) as shard:
            entries = await read_dispatches(shard, 10)
            for n in (7, 0, 4, 9):
                await shard.finish(entries[n], attempted(n))

            async def is_committed() -> bool:
                committed = await cluster_info.committed_offsets(f"{settings.prefix}delivery", [at])
                return at in committed and [
                    n for n in range(10) if OffsetTracker.from_committed(committed[at]).is_finished(n)
                ] == [0, 4, 7, 9]

            await wait_until(is_committed, deadline_seconds=3, what="the offsets of four finished deliveries")


async def test_purge_removes_consumed_records_and_nothing_else(kafka_bootstrap: str) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    first = [TopicPartition(settings.prefix + topic.name, 0) for topic in (ACCEPTED, DISPATCHED, ATTEMPTED)]
    async with running(settings) as log, ClusterInfo(make_access(settings)) as cluster_info:
        for n in range(4):
            await log.append(accepted(n))
        async with router_shard_of(log) as router, delivery_shard_of(log) as shard:
            await log.purge()
            assert [(await cluster_info.beginning_offsets([at]))[at] for at in first] == [0, 0, 0]
            inputs = await read_inputs(router, 3, limit=3)
            await router.commit([dispatched(n) for n in range(4)], inputs)
            entries = await read_dispatches(shard, 4)
            for n in (0, 1, 3):
                await shard.finish(entries[n], attempted(n))
            reports = await read_inputs(router, 4)
            assert len([r for r in records_of(reports) if r == accepted(3)]) == 1
            await asyncio.sleep(0.5)  # the offsets are committed
            await log.purge()
            begins = [(await cluster_info.beginning_offsets([at]))[at] for at in first]
            assert begins == [3, 2, 0]  # the third dispatch is in flight; four inputs are read and not committed
            await router.commit([], reports)
            await shard.finish(entries[2], attempted(2))
            await asyncio.sleep(0.5)
            await log.purge()
            begins = [(await cluster_info.beginning_offsets([at]))[at] for at in first]
            assert begins[0] == 4
            assert begins[1] >= 4
            assert begins[2] == 3
            assert records_of(await read_inputs(router, 1)) == [attempted(2)]


async def test_an_unreadable_record_stops_its_shard_and_no_other(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_on(kafka_bootstrap, shards=2, delivery_shards=1)
    await make_topics(settings)
    await append_frame(settings, ACCEPTED, 0, frame_of_version(9, accepted(1)))
    set_timeouts(monkeypatch, unreadable_retry_seconds=0.5)
    offsets: list[int] = []
    tries = 0

    async def process(shard: RouterShard) -> None:
        nonlocal tries
        tries += shard.number == 0
        while True:
            offsets.extend(entry.offset for entry in await shard.read(10, SOON))

    async with running(settings) as log:
        stop = asyncio.Event()
        ownership = asyncio.ensure_future(log.own_router_shards(process, stop))
        other = next(n for n in range(100) if place(accepted(n), log.counts).shard == 1)
        await log.append(accepted(other))
        await wait_until(lambda: len(offsets) == 1, what="the other shard's message")
        await wait_until(lambda: tries >= 2, what="a retry of the stopped shard")
        assert not ownership.done()
        stop.set()
        await ownership


async def test_new_partitions_of_dispatched_lose_nothing(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, watch_seconds=0.3, metadata_seconds=0.5)
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)

    def dispatch_to_site(n: int) -> Dispatched:
        return dispatched(n, ToMx(f"d{n}.test", ((10, f"mx{n}.test"),)))

    entries: list[Entry[Dispatched]] = []

    async def process(shard: DeliveryShard) -> None:
        while True:
            for entry in await shard.read(10):
                await shard.finish(
                    entry, attempted(int(entry.record.delivery.route.site.removeprefix("mx:mx").partition(".")[0]))
                )
                entries.append(entry)

    async with running(settings) as log:
        stop = asyncio.Event()
        delivery = asyncio.ensure_future(log.own_delivery_shards(process, stop))
        owner = ShardOwner(log.own_router_shards)
        await owner.owns(1)
        router = cast("RouterShard", owner.shards[0])
        await router.commit([dispatch_to_site(n) for n in range(10)], [])
        await wait_until(lambda: len(entries) == 10, what="ten")
        await add_partitions(settings.model_copy(update={"delivery_shards": 4}))
        await wait_until(lambda: log.counts.of_dispatched == 4, what="four shards")
        await router.commit([dispatch_to_site(n) for n in range(10, 50)], [])
        await wait_until(lambda: len(entries) == 50, deadline_seconds=40, what="all fifty")
        await owner.leave()
        stop.set()
        await delivery
    assert sorted(entry.record.delivery.id for entry in entries) == sorted(
        dispatch_to_site(n).delivery.id for n in range(50)
    )
    assert {entry.shard for entry in entries} == {0, 1, 2, 3}


async def add_partitions(settings: LogSettings) -> None:
    access = make_access(settings)
    admin = await open_admin(access)
    try:
        done = await create_missing(admin, access, settings)
    finally:
        await admin.close()
    assert done == [f"{settings.prefix}dispatched: 1 -> 4 partitions"]


async def test_a_log_can_be_opened_and_closed_twice(kafka_bootstrap: str) -> None:
    """Started, closed and closed again: nothing hangs and no client stays open."""
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    await make_topics(settings)
    for n in range(2):
        log = KafkaLog(settings)
        await log.start()
        await log.append(accepted(n))
        await log.close()
        await log.close()
