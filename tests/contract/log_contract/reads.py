"""Log contract: appends and reads."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from mail.log.topics import ShardCounts, place
from mail.record import Accepted, Record
from mail.route import Route, ToMailbox, ToMx, ToRelay
from mail.settings import LogSettings
from tests.contract.log_contract.harness import (
    NOW,
    SOON,
    Harness,
    delivery_shard_of,
    read_dispatches,
    read_inputs,
    records_of,
    router_shard_of,
)
from tests.support.builders.records import (
    accepted,
    attempted,
    dispatched,
    queue_id,
)


class ReadTests:
    async def test_records_are_read_in_the_order_of_appends(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        records = [accepted(n) for n in range(20)]
        for record in records[:10]:
            await log.append(record)
        async with router_shard_of(log) as shard:
            for record in records[10:]:
                await log.append(record)
            entries = await read_inputs(shard, 20, limit=7)
        assert records_of(entries) == records
        offsets = [entry.offset for entry in entries]
        assert offsets == sorted(set(offsets))
        assert {(entry.topic, entry.shard) for entry in entries} == {("accepted", 0)}
        await log.close()

    async def test_records_survive_a_restart_and_offsets_continue(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        await asyncio.gather(*(log.append(accepted(n)) for n in range(5)))
        async with router_shard_of(log) as shard:
            first = await read_inputs(shard, 5)
            await shard.commit([], first)
        await log.append(accepted(5))
        await log.close()
        log = await harness.make(LogSettings())
        await log.append(accepted(6))
        async with router_shard_of(log) as shard:
            second = await read_inputs(shard, 2)
        assert records_of(second) == [accepted(5), accepted(6)]
        assert max(e.offset for e in first) < second[0].offset < second[1].offset
        await log.close()

    async def test_a_message_goes_to_the_shard_of_its_queue_id(self, harness: Harness) -> None:
        settings = LogSettings(shards=3, delivery_shards=2)
        log = await harness.make(settings)
        assert log.counts == ShardCounts(3, 2)
        records = [accepted(n) for n in range(12)]
        for record in records:
            await log.append(record)
        for number in range(3):
            expected = [record for record in records if place(record, log.counts).shard == number]
            assert expected  # the sample reaches every shard
            async with router_shard_of(log, number) as shard:
                assert shard.number == number
                assert records_of(await read_inputs(shard, len(expected))) == expected
                assert not await shard.read(10, NOW)
        await log.close()

    async def test_a_dispatch_goes_to_the_shard_of_its_partition_key(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2, delivery_shards=3))
        routes: list[Route] = [
            *(ToRelay(f"relay{n}.example.test", 25) for n in range(3)),
            *(ToMailbox(f"user{n}@example.test") for n in range(6)),
            *(ToMx(f"d{n}.test", ((10, f"mx{n}.test"),)) for n in range(6)),
        ]
        outputs = [dispatched(n, route) for n, route in enumerate(routes)]
        async with router_shard_of(log) as router:
            await router.commit(outputs, [])
        for number in range(3):
            expected = [record for record in outputs if place(record, log.counts).shard == number]
            assert expected
            async with delivery_shard_of(log, number) as shard:
                assert [e.record for e in await read_dispatches(shard, len(expected))] == expected
        await log.close()

    async def test_a_read_waits_for_the_first_record_within_its_limit(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with router_shard_of(log) as shard:
            assert not await shard.read(10, NOW)
            assert not await shard.read(10, timedelta(milliseconds=20))
            waiting = asyncio.ensure_future(shard.read(10, SOON))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await log.append(accepted(1))
            assert records_of(await waiting) == [accepted(1)]
        await log.close()

    async def test_a_read_without_a_wait_is_empty_only_at_the_end(self, harness: Harness) -> None:
        """Also just after the start, before anything was fetched, and with finished entries in between and last."""
        log = await harness.make(LogSettings())
        async with router_shard_of(log) as router:
            for start in range(0, 300, 50):
                await router.commit([dispatched(n) for n in range(start, start + 50)], [])
        async with delivery_shard_of(log) as shard:
            entries = await read_dispatches(shard, 300)
            for n in (0, 1, 2, *range(100, 200), 297, 298, 299):
                await shard.finish(entries[n], attempted(n))
        await log.close()
        log = await harness.make(LogSettings())
        async with delivery_shard_of(log) as shard:
            read: list[Record] = []
            while more := await shard.read(7, NOW):
                read += [entry.record for entry in more]
            assert read == [dispatched(n) for n in (*range(3, 100), *range(200, 297))]
            assert not await shard.read(7, timedelta(milliseconds=20))
            waiting = asyncio.ensure_future(shard.read(7, SOON))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            async with router_shard_of(log) as router:
                await router.commit([dispatched(300)], [])
                assert [entry.record for entry in await waiting] == [dispatched(300)]
        await log.close()

    async def test_records_beyond_the_memory_limit_are_read_in_order(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        content = bytes(256 * 1024)
        async with router_shard_of(log) as shard:
            for n in range(0, 120, 20):
                await asyncio.gather(*(log.append(accepted(n + k, content)) for k in range(20)))
            entries = await read_inputs(shard, 120, limit=50)
            assert [e.record.message.queue_id for e in entries if isinstance(e.record, Accepted)] == [
                queue_id(n) for n in range(120)
            ]
            await log.append(accepted(500))
            assert records_of(await read_inputs(shard, 1)) == [accepted(500)]
        await log.close()

    async def test_appends_may_be_cancelled_without_harm(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        tasks = [asyncio.ensure_future(log.append(accepted(n))) for n in range(10)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await log.append(accepted(99))
        async with router_shard_of(log) as shard:
            seen = {e.record.message.queue_id for e in await read_inputs(shard, 6) if isinstance(e.record, Accepted)}
        assert {queue_id(n) for n in (1, 3, 5, 7, 9)} <= seen
        await log.close()
