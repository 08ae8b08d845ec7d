"""Log contract: router commits and replay."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from mail.log import (
    Down,
    LogUnavailable,
    RouterShard,
    ShardLost,
    Usable,
)
from mail.log.queue_summary import QueueSummary, Totals
from mail.log.topics import place
from mail.record import QueueEntry, QueueTombstone
from mail.settings import LogSettings
from tests.contract.log_contract.harness import (
    NOW,
    Harness,
    delivery_shard_of,
    events,
    eventually_equals,
    read_dispatches,
    read_inputs,
    records_of,
    replay_all,
    router_shard_of,
)
from tests.support.builders.records import (
    accepted,
    delivery,
    dispatched,
    event,
    queue_entry,
    queue_id,
)
from tests.support.servers.ports import wait_until


class CommitTests:
    async def test_a_commit_makes_outputs_and_offsets_durable(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        await log.append(accepted(1))
        async with router_shard_of(log) as shard:
            entries = await read_inputs(shard, 1)
            await shard.commit([queue_entry(1), dispatched(1), event(1)], entries)
        await log.close()
        log = await harness.make(LogSettings())
        async with router_shard_of(log) as shard:
            assert not await shard.read(10, NOW)
            assert await replay_all(shard) == [queue_entry(1)]
        async with delivery_shard_of(log) as shard:
            assert [e.record for e in await read_dispatches(shard, 1)] == [dispatched(1)]
        await eventually_equals(lambda: events(log, 1), [event(1)])
        await log.close()

    async def test_uncommitted_inputs_are_read_again(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        for n in range(4):
            await log.append(accepted(n))
        async with router_shard_of(log) as shard:
            first = await read_inputs(shard, 2, limit=2)
            await shard.commit([], first)
            await read_inputs(shard, 2)
        async with router_shard_of(log) as shard:  # the next owner
            assert records_of(await read_inputs(shard, 2)) == [accepted(2), accepted(3)]
        await log.close()

    async def test_rewind_returns_to_the_committed_offset(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        for n in range(4):
            await log.append(accepted(n))
        async with router_shard_of(log) as shard:
            await shard.commit([], await read_inputs(shard, 1, limit=1))
            await read_inputs(shard, 2, limit=2)
            await shard.rewind()
            await log.append(accepted(4))
            again = await read_inputs(shard, 4)
            assert records_of(again) == [accepted(n) for n in (1, 2, 3, 4)]
            await shard.commit([], again)
            await shard.rewind()
            assert not await shard.read(10, NOW)
        await log.close()

    async def test_a_failed_commit_changes_nothing(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        await log.append(accepted(1))
        async with router_shard_of(log) as shard:
            entries = await read_inputs(shard, 1)
            harness.fail_writes(log)
            with pytest.raises(LogUnavailable):
                await shard.commit([queue_entry(1), dispatched(1), event(1)], entries)
            with pytest.raises(LogUnavailable):
                await log.append(accepted(2))
            assert isinstance(log.condition(), Down)
            harness.repair(log)
            await wait_until(lambda: isinstance(log.condition(), Usable), deadline_seconds=10)
            await shard.rewind()
            assert await replay_all(shard) == []
            assert await events(log, 1) == []
            again = await read_inputs(shard, 1)
            assert records_of(again) == [accepted(1)]
            await shard.commit([queue_entry(1), dispatched(1)], again)
            assert await replay_all(shard) == [queue_entry(1)]
        async with delivery_shard_of(log) as deliverer:
            assert len(await read_dispatches(deliverer, 1)) == 1
        await log.close()

    async def test_a_shard_revoked_during_a_failed_commit_raises_shard_lost(self, harness: Harness) -> None:
        """An owner that rewinds and replays after the failure must get ShardLost."""
        log = await harness.make(LogSettings())
        await log.append(accepted(1))
        stop = asyncio.Event()

        async def process(shard: RouterShard) -> None:
            entries = await read_inputs(shard, 1)
            harness.fail_writes(log)
            with pytest.raises(LogUnavailable):
                await shard.commit([queue_entry(1)], entries)
            harness.repair(log)
            stop.set()
            await asyncio.sleep(0.1)  # revoked
            while True:
                try:
                    await shard.rewind()
                    await replay_all(shard)
                    await shard.read(10, NOW)
                except LogUnavailable:
                    await asyncio.sleep(0.05)
                except ShardLost:
                    return

        async with asyncio.timeout(20):
            await log.own_router_shards(process, stop)
        await log.close()

    async def test_replay_equals_the_fold_of_committed_records(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        fold: dict[str, QueueEntry] = {}
        for step in range(60):
            number = step * 7 % 13
            record: QueueEntry | QueueTombstone = (
                QueueTombstone(delivery(number).id) if step % 4 == 3 else queue_entry(number, attempts=step)
            )
            shard_number = place(record, log.counts).shard
            async with router_shard_of(log, shard_number) as shard:
                await shard.commit([record], [])
            match record:
                case QueueEntry():
                    fold[record.delivery.id] = record
                case QueueTombstone():
                    fold.pop(record.delivery_id, None)
        assert 0 < len(fold) < 13
        await log.close()
        log = await harness.make(LogSettings(shards=2))
        replayed: list[QueueEntry] = []
        for number in range(2):
            async with router_shard_of(log, number) as shard:
                shard_records = await replay_all(shard)
                assert all(place(record, log.counts).shard == number for record in shard_records)
                replayed += shard_records
        assert {record.delivery.id: record for record in replayed} == fold
        assert len(replayed) == len(fold)
        assert sorted([record async for record in log.queue_entries()], key=repr) == sorted(replayed, key=repr)
        await log.close()

    async def test_the_last_queue_entry_of_a_commit_counts(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with router_shard_of(log) as shard:
            await shard.commit([queue_entry(1), QueueTombstone(delivery(1).id), queue_entry(2), queue_entry(2, 5)], [])
            await shard.commit([QueueTombstone(delivery(9).id)], [])
            assert await replay_all(shard) == [queue_entry(2, 5)]
        await log.close()

    async def test_queue_entries_of_one_message(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=3))
        for number in range(30):
            for part in (1, 2, 10):
                await log.append(queue_entry(number, part=part))
        for number in (0, 17):
            replayed = [record async for record in log.queue_entries(queue_id(number))]
            assert sorted(replayed, key=repr) == sorted((queue_entry(number, part=p) for p in (1, 2, 10)), key=repr)
        assert [record async for record in log.queue_entries(queue_id(99))] == []
        assert len([record async for record in log.queue_entries()]) == 90
        await log.close()

    async def test_summary_of_the_queue_has_all_its_entries(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=3))
        empty = QueueSummary()
        await log.summarize_queue(empty)
        assert (empty.total, empty.oldest) == (Totals(), [])
        entries = [queue_entry(number) for number in range(20)]
        for entry in [*entries, QueueTombstone(delivery(7).id)]:
            await log.append(entry)
        del entries[7]
        summary = QueueSummary()
        await log.summarize_queue(summary)
        assert summary.oldest == [replace(entry, content=None) for entry in entries]
        assert summary.total.deliveries == 19
        await log.close()

    async def test_a_long_replay_is_read_in_batches(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with router_shard_of(log) as shard:
            await shard.commit([queue_entry(n) for n in range(1200)], [])
            batches = [batch async for batch in shard.replay()]
        assert len(batches) > 1
        assert sorted(record.delivery.id for batch in batches for record in batch) == sorted(
            delivery(n).id for n in range(1200)
        )
        await log.close()
