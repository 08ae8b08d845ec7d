"""Log contract: queries, backlog and retention."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from mail.log import (
    Backlog,
    Full,
    Usable,
)
from mail.log.topics import place
from mail.message import queue_id_time
from mail.settings import LogSettings
from tests.contract.log_contract.harness import (
    NOW,
    Harness,
    delivery_shard_of,
    events,
    eventually_equals,
    read_dispatches,
    read_inputs,
    received_earlier,
    records_of,
    replay_all,
    router_shard_of,
)
from tests.support.builders.records import (
    accepted,
    attempted,
    dispatched,
    event,
    queue_entry,
    queue_id,
)


class QueryTests:
    async def test_history_has_the_events_of_one_message_in_order(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        base = datetime.now(UTC)
        own_events = [event(1, time=base + timedelta(seconds=n)) for n in range(4)]
        async with router_shard_of(log, place(own_events[0], log.counts).shard) as shard:
            for own_event in own_events:
                await shard.commit([own_event], [])
        async with router_shard_of(log, place(event(2), log.counts).shard) as shard:
            await shard.commit([event(2, time=base)], [])
        await eventually_equals(lambda: events(log, 1), own_events)
        assert await events(log, 7) == []
        await log.close()

    async def test_an_unrouted_message_is_found(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        for n in range(4):
            await log.append(accepted(n))
        assert list(await log.unrouted_messages(queue_id(2))) == [accepted(2)]
        assert list(await log.unrouted_messages(queue_id(9))) == []
        shard_number = place(accepted(2), log.counts).shard
        async with router_shard_of(log, shard_number) as shard:
            await shard.commit([], await read_inputs(shard, 1, limit=10))
        await eventually_equals(lambda: log.unrouted_messages(queue_id(2)), [])
        await log.close()

    async def test_the_backlog_counts_unconsumed_records(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        for n in range(3):
            await log.append(accepted(n))
        async with router_shard_of(log) as router:
            inputs = await read_inputs(router, 2, limit=2)
            assert (await log.backlog()).accepted == 3
            await router.commit([dispatched(0), dispatched(1)], inputs)
        async with delivery_shard_of(log) as shard:
            entries = await read_dispatches(shard, 2)
            await shard.finish(entries[1], attempted(1))
        await log.close()
        log = await harness.make(LogSettings())
        await eventually_equals(log.backlog, Backlog(accepted=1, dispatched=1, attempted=1))
        await log.close()

    async def test_the_oldest_unconsumed_record(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2, delivery_shards=2))
        assert await log.oldest_unconsumed() is None
        old, older, oldest = (received_earlier(accepted(n), days=n) for n in (2, 3, 4))
        for record in (oldest, old, older):
            await log.append(record)
        assert await log.oldest_unconsumed() == oldest.message.received
        for number in range(2):
            async with router_shard_of(log, number) as shard:
                taken_here = await shard.read(100, NOW)
                await shard.commit([dispatched(9)] if number else [], taken_here)
        await eventually_equals(log.oldest_unconsumed, dispatched(9).delivery.message.received)
        async with delivery_shard_of(log, place(dispatched(9), log.counts).shard) as delivery_shard:
            (entry,) = await read_dispatches(delivery_shard, 1)
            await delivery_shard.finish(entry, attempted(9))
        await eventually_equals(log.oldest_unconsumed, queue_id_time(queue_id(9)))
        await log.close()

    async def test_above_the_backlog_limit_only_new_mail_is_refused(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(max_unrouted_messages=3))
        assert isinstance(log.condition(), Usable)
        for n in range(3):
            await log.append(accepted(n))
        assert isinstance(log.condition(), Full)
        async with router_shard_of(log) as shard:
            await shard.commit([], await read_inputs(shard, 3))
            assert isinstance(log.condition(), Usable)
        await log.close()

    async def test_purge_removes_old_events_and_nothing_else(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(events_retention="1d"))  # type: ignore[arg-type]
        now = datetime.now(UTC)
        old, new = event(1, time=now - timedelta(days=2)), event(1, time=now - timedelta(hours=1))
        await log.append(accepted(1))  # its date is years ago
        async with router_shard_of(log) as shard:
            await shard.commit([queue_entry(1), dispatched(1), old, new], [])
        await log.purge()
        await eventually_equals(lambda: events(log, 1), [new])
        async with router_shard_of(log) as shard:
            assert await replay_all(shard) == [queue_entry(1)]
            assert records_of(await read_inputs(shard, 1)) == [accepted(1)]
        async with delivery_shard_of(log) as deliverer:
            assert len(await read_dispatches(deliverer, 1)) == 1
        await log.close()
