"""Log contract: ownership, revocation and draining of shards; finishing deliveries."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from mail.log import (
    DeliveryShard,
    RouterShard,
    ShardLost,
)
from mail.settings import LogSettings
from tests.contract.log_contract.harness import (
    SOON,
    Harness,
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
    queue_entry,
)


class OwnershipTests:
    async def test_stop_ends_a_read_and_the_drain_may_still_commit(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        await log.append(accepted(1))
        stop, lost = asyncio.Event(), False

        async def process(shard: RouterShard) -> None:
            nonlocal lost
            entries = await read_inputs(shard, 1)
            asyncio.get_running_loop().call_later(0.02, stop.set)
            with pytest.raises(ShardLost):
                await shard.read(10, SOON)
            with pytest.raises(ShardLost):
                await shard.read(10, SOON)
            lost = True
            await shard.commit([queue_entry(1)], entries)

        async with asyncio.timeout(10):
            await log.own_router_shards(process, stop)
        assert lost
        async with router_shard_of(log) as shard:
            assert await replay_all(shard) == [queue_entry(1)]
        await log.close()

    async def test_an_exception_in_process_ends_the_ownership(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        other_ended = False

        async def process(shard: RouterShard) -> None:
            nonlocal other_ended
            if shard.number == 1:
                raise ZeroDivisionError
            try:
                await shard.read(10, timedelta(hours=1))
            finally:
                other_ended = True

        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(10):
                await log.own_router_shards(process, asyncio.Event())
        assert other_ended
        await log.close()

    async def test_only_unfinished_entries_are_read_again(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with router_shard_of(log) as router:
            await router.commit([dispatched(n) for n in range(10)], [])
        async with delivery_shard_of(log) as shard:
            entries = await read_dispatches(shard, 10)
            for n in (7, 0, 4, 9):
                await shard.finish(entries[n], attempted(n))
            await shard.finish(entries[4], attempted(4))  # a repeat is harmless
        await log.close()
        log = await harness.make(LogSettings())
        async with delivery_shard_of(log) as shard:
            again = await read_dispatches(shard, 6)
            assert [e.record for e in again] == [dispatched(n) for n in (1, 2, 3, 5, 6, 8)]
        async with router_shard_of(log) as router:
            reports = records_of(await read_inputs(router, 5))
        assert [r for r in reports if r != attempted(4)] == [attempted(n) for n in (7, 0, 9)]
        await log.close()

    async def test_finish_works_while_draining(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with router_shard_of(log) as router:
            await router.commit([dispatched(1)], [])
        stop = asyncio.Event()

        async def process(shard: DeliveryShard) -> None:
            (entry,) = await read_dispatches(shard, 1)
            stop.set()
            with pytest.raises(ShardLost):
                await shard.read(1)
            await shard.finish(entry, attempted(1))

        async with asyncio.timeout(10):
            await log.own_delivery_shards(process, stop)
        async with router_shard_of(log) as router:
            assert records_of(await read_inputs(router, 1)) == [attempted(1)]
        assert (await log.backlog()).dispatched == 0
        await log.close()

    async def test_lost_is_set_for_an_owner_that_does_not_read(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        stop = asyncio.Event()
        before: list[bool] = []

        async def process(shard: DeliveryShard) -> None:
            before.append(shard.lost.is_set())
            stop.set()
            await shard.lost.wait()

        async with asyncio.timeout(10):
            await log.own_delivery_shards(process, stop)
        assert before == [False]
        await log.close()

    async def test_a_read_of_dispatches_keeps_its_limit_and_waits(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with router_shard_of(log) as router, delivery_shard_of(log) as shard:
            waiting = asyncio.ensure_future(shard.read(2))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await router.commit([dispatched(n) for n in range(3)], [])
            first = await waiting
            assert 1 <= len(first) <= 2
            rest = await read_dispatches(shard, 3 - len(first))
            assert [e.record for e in [*first, *rest]] == [dispatched(n) for n in range(3)]
        await log.close()
