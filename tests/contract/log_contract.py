"""What every log must do, whatever it is made of. An adapter joins by naming a harness (`test_log.py`).

A harness makes logs on one store: `make` a first one, `reopen` after a stop, break and mend what lies below.
The suite asserts on records only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

import pytest

from mail.log import (
    DeliveryShard,
    Down,
    Entry,
    Full,
    Log,
    LogUnavailable,
    LogUnusable,
    RouterShard,
    ShardLost,
    Usable,
)
from mail.log.codec import encode
from mail.log.topics import ACCEPTED, DISPATCHED, ShardCounts, Topic, place
from mail.message import queue_id_time
from mail.record import Accepted, Attempted, Dispatched, Pending, Record, Settled
from mail.route import Route, ToMailbox, ToMx, ToRelay
from mail.settings import LogSettings
from tests.support.log_samples import (
    accepted,
    attempted,
    delivery,
    dispatched,
    event,
    pending,
    queue_id,
)

SOON = timedelta(seconds=5)
NOW = timedelta(0)
T = TypeVar("T")


class Harness(Protocol):
    async def make(self, settings: LogSettings) -> Log:
        """A started log on this harness's store; after `close()` of the last one, it finds what that one left."""
        ...

    async def plant(self, log: Log, topic: Topic, shard: int, frame: bytes) -> None:
        """Write raw bytes as the next entry of a shard."""
        ...

    def fail_writes(self, log: Log) -> None:
        """From now on nothing is confirmed, until `mend`."""
        ...

    def mend(self, log: Log) -> None: ...


@asynccontextmanager
async def routing(log: Log, number: int = 0) -> AsyncIterator[RouterShard]:
    """Own the router's shards; use one of them."""
    async with _owning(log.route, number) as shard:
        yield shard


@asynccontextmanager
async def delivering(log: Log, number: int = 0) -> AsyncIterator[DeliveryShard]:
    async with _owning(log.deliver, number) as shard:
        yield shard


@asynccontextmanager
async def _owning(own: Callable[..., Awaitable[None]], number: int) -> AsyncIterator[T]:  # type: ignore[type-var]
    stop, found = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def tend(shard: T) -> None:
        if shard.number == number:  # type: ignore[attr-defined]
            found.set_result(shard)
        await stop.wait()

    owner = asyncio.ensure_future(own(tend, stop))
    try:
        async with asyncio.timeout(10):
            yield await found
    finally:
        stop.set()
        await owner


async def take_all(shard: RouterShard, count: int, limit: int = 100) -> list[Entry[Accepted] | Entry[Attempted]]:
    taken: list[Entry[Accepted] | Entry[Attempted]] = []
    while len(taken) < count:
        more = await shard.take(limit, SOON)
        assert more, f"{count - len(taken)} inputs did not come"
        assert len(more) <= limit
        taken += more
    return taken


async def dispatches(shard: DeliveryShard, count: int) -> list[Entry[Dispatched]]:
    taken: list[Entry[Dispatched]] = []
    while len(taken) < count:
        async with asyncio.timeout(5):
            taken += await shard.take(100)
    return taken


async def lines(shard: RouterShard) -> list[Pending]:
    return [line async for batch in shard.replay() for line in batch]


def numbers(entries: Sequence[Entry[Accepted] | Entry[Attempted]]) -> list[Record]:
    return [entry.record for entry in entries]


def _aged(record: Accepted, days: int) -> Accepted:
    received = record.message.received - timedelta(days=days)
    return replace(record, message=replace(record.message, received=received))


class LogContract:
    """Subclasses provide the fixture `harness`."""

    # --- appending and taking

    async def test_what_was_appended_is_taken_in_its_order(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        records = [accepted(n) for n in range(20)]
        for record in records[:10]:
            await log.append(record)
        async with routing(log) as shard:
            for record in records[10:]:
                await log.append(record)
            taken = await take_all(shard, 20, limit=7)
        assert numbers(taken) == records
        offsets = [entry.offset for entry in taken]
        assert offsets == sorted(set(offsets))
        assert {(entry.topic, entry.shard) for entry in taken} == {("accepted", 0)}
        await log.close()

    async def test_what_was_appended_survives_a_restart_and_offsets_go_on(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        await asyncio.gather(*(log.append(accepted(n)) for n in range(5)))
        async with routing(log) as shard:
            first = await take_all(shard, 5)
            await shard.commit([], first)
        await log.append(accepted(5))
        await log.close()
        log = await harness.make(LogSettings())
        await log.append(accepted(6))
        async with routing(log) as shard:
            second = await take_all(shard, 2)
        assert numbers(second) == [accepted(5), accepted(6)]
        assert max(e.offset for e in first) < second[0].offset < second[1].offset
        await log.close()

    async def test_a_message_finds_the_shard_of_its_queue_id(self, harness: Harness) -> None:
        settings = LogSettings(shards=3, delivery_shards=2)
        log = await harness.make(settings)
        assert log.counts == ShardCounts(3, 2)
        records = [accepted(n) for n in range(12)]
        for record in records:
            await log.append(record)
        for number in range(3):
            mine = [record for record in records if place(record, log.counts).shard == number]
            assert mine  # the sample reaches every shard
            async with routing(log, number) as shard:
                assert shard.number == number
                assert numbers(await take_all(shard, len(mine))) == mine
                assert not await shard.take(10, NOW)
        await log.close()

    async def test_a_dispatch_finds_its_shard(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2, delivery_shards=3))
        routes: list[Route] = [
            *(ToRelay(f"relay{n}.example.test", 25) for n in range(3)),
            *(ToMailbox(f"user{n}@example.test") for n in range(6)),
            *(ToMx(f"d{n}.test", ((10, f"mx{n}.test"),)) for n in range(6)),
        ]
        outputs = [dispatched(n, route) for n, route in enumerate(routes)]
        async with routing(log) as router:
            await router.commit(outputs, [])
        for number in range(3):
            mine = [record for record in outputs if place(record, log.counts).shard == number]
            assert mine
            async with delivering(log, number) as shard:
                assert [e.record for e in await dispatches(shard, len(mine))] == mine
        await log.close()

    async def test_take_waits_for_the_first_and_no_longer_than_told(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with routing(log) as shard:
            assert not await shard.take(10, NOW)
            assert not await shard.take(10, timedelta(milliseconds=20))
            waiting = asyncio.ensure_future(shard.take(10, SOON))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await log.append(accepted(1))
            assert numbers(await waiting) == [accepted(1)]
        await log.close()

    async def test_more_than_fits_into_memory_is_taken_in_order_too(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        content = bytes(256 * 1024)
        async with routing(log) as shard:
            for n in range(0, 120, 20):
                await asyncio.gather(*(log.append(accepted(n + k, content)) for k in range(20)))
            taken = await take_all(shard, 120, limit=50)
            assert [e.record.message.queue_id for e in taken if isinstance(e.record, Accepted)] == [
                queue_id(n) for n in range(120)
            ]
            await log.append(accepted(500))
            assert numbers(await take_all(shard, 1)) == [accepted(500)]
        await log.close()

    # --- the router's commit

    async def test_a_commit_makes_outputs_and_marks_durable(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        await log.append(accepted(1))
        async with routing(log) as shard:
            taken = await take_all(shard, 1)
            await shard.commit([pending(1), dispatched(1), event(1)], taken)
        await log.close()
        log = await harness.make(LogSettings())
        async with routing(log) as shard:
            assert not await shard.take(10, NOW)
            assert await lines(shard) == [pending(1)]
        async with delivering(log) as shard:
            assert [e.record for e in await dispatches(shard, 1)] == [dispatched(1)]
        assert [e async for e in log.history(queue_id(1))] == [event(1)]
        await log.close()

    async def test_what_was_taken_and_not_committed_is_taken_again(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        for n in range(4):
            await log.append(accepted(n))
        async with routing(log) as shard:
            first = await take_all(shard, 2, limit=2)
            await shard.commit([], first)
            await take_all(shard, 2)
        async with routing(log) as shard:  # the next owner
            assert numbers(await take_all(shard, 2)) == [accepted(2), accepted(3)]
        await log.close()

    async def test_rewind_goes_back_to_the_mark(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        for n in range(4):
            await log.append(accepted(n))
        async with routing(log) as shard:
            await shard.commit([], await take_all(shard, 1, limit=1))
            await take_all(shard, 2, limit=2)
            await shard.rewind()
            await log.append(accepted(4))
            again = await take_all(shard, 4)
            assert numbers(again) == [accepted(n) for n in (1, 2, 3, 4)]
            await shard.commit([], again)
            await shard.rewind()
            assert not await shard.take(10, NOW)
        await log.close()

    async def test_a_commit_that_fails_does_nothing(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        await log.append(accepted(1))
        async with routing(log) as shard:
            taken = await take_all(shard, 1)
            harness.fail_writes(log)
            with pytest.raises(LogUnavailable):
                await shard.commit([pending(1), dispatched(1), event(1)], taken)
            with pytest.raises(LogUnavailable):
                await log.append(accepted(2))
            assert isinstance(log.condition(), Down)
            harness.mend(log)
            async with asyncio.timeout(10):
                while not isinstance(log.condition(), Usable):
                    await asyncio.sleep(0.02)
            await shard.rewind()
            assert await lines(shard) == []
            assert [e async for e in log.history(queue_id(1))] == []
            again = await take_all(shard, 1)
            assert numbers(again) == [accepted(1)]
            await shard.commit([pending(1), dispatched(1)], again)
            assert await lines(shard) == [pending(1)]
        async with delivering(log) as deliverer:
            assert len(await dispatches(deliverer, 1)) == 1
        await log.close()

    async def test_a_shard_lost_while_a_commit_fails_lets_its_tender_go(self, harness: Harness) -> None:
        """A tender that rewinds and replays after the failure must learn that the shard is gone."""
        log = await harness.make(LogSettings())
        await log.append(accepted(1))
        stop = asyncio.Event()

        async def tend(shard: RouterShard) -> None:
            taken = await take_all(shard, 1)
            harness.fail_writes(log)
            with pytest.raises(LogUnavailable):
                await shard.commit([pending(1)], taken)
            harness.mend(log)
            stop.set()
            await asyncio.sleep(0.1)  # it is told
            while True:
                try:
                    await shard.rewind()
                    await lines(shard)
                    await shard.take(10, NOW)
                except LogUnavailable:
                    await asyncio.sleep(0.05)
                except ShardLost:
                    return

        async with asyncio.timeout(20):
            await log.route(tend, stop)
        await log.close()

    async def test_replay_equals_the_fold_of_what_was_committed(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        fold: dict[str, Pending] = {}
        for step in range(60):
            number = step * 7 % 13
            line: Pending | Settled = Settled(delivery(number).id) if step % 4 == 3 else pending(number, attempts=step)
            shard_number = place(line, log.counts).shard
            async with routing(log, shard_number) as shard:
                await shard.commit([line], [])
            match line:
                case Pending():
                    fold[line.delivery.id] = line
                case Settled():
                    fold.pop(line.delivery_id, None)
        assert 0 < len(fold) < 13
        await log.close()
        log = await harness.make(LogSettings(shards=2))
        found: list[Pending] = []
        for number in range(2):
            async with routing(log, number) as shard:
                mine = await lines(shard)
                assert all(place(line, log.counts).shard == number for line in mine)
                found += mine
        assert {line.delivery.id: line for line in found} == fold
        assert len(found) == len(fold)
        assert sorted([line async for line in log.open_lines()], key=repr) == sorted(found, key=repr)
        await log.close()

    async def test_the_last_line_of_a_commit_counts(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with routing(log) as shard:
            await shard.commit([pending(1), Settled(delivery(1).id), pending(2), pending(2, 5)], [])
            await shard.commit([Settled(delivery(9).id)], [])
            assert await lines(shard) == [pending(2, 5)]
        await log.close()

    async def test_the_open_lines_of_one_message(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=3))
        for number in range(30):
            for part in (1, 2, 10):
                await log.append(pending(number, part=part))
        for number in (0, 17):
            found = [line async for line in log.open_lines(queue_id(number))]
            assert sorted(found, key=repr) == sorted((pending(number, part=p) for p in (1, 2, 10)), key=repr)
        assert [line async for line in log.open_lines(queue_id(99))] == []
        assert len([line async for line in log.open_lines()]) == 90
        await log.close()

    async def test_a_replay_of_many_lines_comes_in_batches(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with routing(log) as shard:
            await shard.commit([pending(n) for n in range(1200)], [])
            batches = [batch async for batch in shard.replay()]
        assert len(batches) > 1
        assert sorted(line.delivery.id for batch in batches for line in batch) == sorted(
            delivery(n).id for n in range(1200)
        )
        await log.close()

    # --- ownership

    async def test_a_shard_has_one_owner_at_a_time(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        for number in range(2):
            async with routing(log, number):
                owned: list[int] = []
                stop = asyncio.Event()

                async def tend(shard: RouterShard, owned: list[int] = owned, stop: asyncio.Event = stop) -> None:
                    owned.append(shard.number)
                    await stop.wait()

                second = asyncio.ensure_future(log.route(tend, stop))
                await asyncio.sleep(0.02)
                assert number not in owned
            async with asyncio.timeout(10):
                while len(owned) < 2:
                    await asyncio.sleep(0.01)
            stop.set()
            await second
        await log.close()

    async def test_stop_ends_a_take_and_the_drain_may_still_commit(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        await log.append(accepted(1))
        stop, lost = asyncio.Event(), False

        async def tend(shard: RouterShard) -> None:
            nonlocal lost
            taken = await take_all(shard, 1)
            asyncio.get_running_loop().call_later(0.02, stop.set)
            with pytest.raises(ShardLost):
                await shard.take(10, SOON)
            with pytest.raises(ShardLost):
                await shard.take(10, SOON)
            lost = True
            await shard.commit([pending(1)], taken)

        async with asyncio.timeout(10):
            await log.route(tend, stop)
        assert lost
        async with routing(log) as shard:
            assert await lines(shard) == [pending(1)]
        await log.close()

    async def test_an_exception_out_of_a_tend_ends_the_ownership_with_it(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        other_ended = False

        async def tend(shard: RouterShard) -> None:
            nonlocal other_ended
            if shard.number == 1:
                raise ZeroDivisionError
            try:
                await shard.take(10, timedelta(hours=1))
            finally:
                other_ended = True

        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(10):
                await log.route(tend, asyncio.Event())
        assert other_ended
        await log.close()

    # --- delivery

    async def test_what_is_finished_out_of_order_is_not_given_again_and_the_rest_is(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with routing(log) as router:
            await router.commit([dispatched(n) for n in range(10)], [])
        async with delivering(log) as shard:
            entries = await dispatches(shard, 10)
            for n in (7, 0, 4, 9):
                await shard.finish(entries[n], attempted(n))
            await shard.finish(entries[4], attempted(4))  # a repeat is harmless
        await log.close()
        log = await harness.make(LogSettings())
        async with delivering(log) as shard:
            again = await dispatches(shard, 6)
            assert [e.record for e in again] == [dispatched(n) for n in (1, 2, 3, 5, 6, 8)]
        async with routing(log) as router:
            reports = numbers(await take_all(router, 5))
        assert [r for r in reports if r != attempted(4)] == [attempted(n) for n in (7, 0, 9)]
        await log.close()

    async def test_finish_works_while_draining(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with routing(log) as router:
            await router.commit([dispatched(1)], [])
        stop = asyncio.Event()

        async def tend(shard: DeliveryShard) -> None:
            (entry,) = await dispatches(shard, 1)
            stop.set()
            with pytest.raises(ShardLost):
                await shard.take(1)
            await shard.finish(entry, attempted(1))

        async with asyncio.timeout(10):
            await log.deliver(tend, stop)
        async with routing(log) as router:
            assert numbers(await take_all(router, 1)) == [attempted(1)]
        assert (await log.backlog()).dispatched == 0
        await log.close()

    async def test_who_is_too_busy_to_take_is_told_that_the_shard_is_lost(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        stop = asyncio.Event()
        before: list[bool] = []

        async def tend(shard: DeliveryShard) -> None:
            before.append(shard.lost.is_set())
            stop.set()
            await shard.lost.wait()

        async with asyncio.timeout(10):
            await log.deliver(tend, stop)
        assert before == [False]
        await log.close()

    async def test_take_of_dispatches_keeps_its_limit_and_waits(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with routing(log) as router, delivering(log) as shard:
            waiting = asyncio.ensure_future(shard.take(2))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await router.commit([dispatched(n) for n in range(3)], [])
            first = await waiting
            assert 1 <= len(first) <= 2
            rest = await dispatches(shard, 3 - len(first))
            assert [e.record for e in [*first, *rest]] == [dispatched(n) for n in range(3)]
        await log.close()

    # --- people

    async def test_history_is_in_order_and_of_one_message(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        base = datetime.now(UTC)
        mine = [event(1, time=base + timedelta(seconds=n)) for n in range(4)]
        async with routing(log, place(mine[0], log.counts).shard) as shard:
            for one in mine:
                await shard.commit([one], [])
        async with routing(log, place(event(2), log.counts).shard) as shard:
            await shard.commit([event(2, time=base)], [])
        assert [e async for e in log.history(queue_id(1))] == mine
        assert [e async for e in log.history(queue_id(7))] == []
        await log.close()

    async def test_what_was_accepted_a_moment_ago_can_be_seen(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        for n in range(4):
            await log.append(accepted(n))
        assert list(await log.waiting_inputs(queue_id(2))) == [accepted(2)]
        assert list(await log.waiting_inputs(queue_id(9))) == []
        shard_number = place(accepted(2), log.counts).shard
        async with routing(log, shard_number) as shard:
            await shard.commit([], await take_all(shard, 1, limit=10))
        assert list(await log.waiting_inputs(queue_id(2))) == []
        await log.close()

    async def test_the_backlog_counts_what_is_not_consumed(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        for n in range(3):
            await log.append(accepted(n))
        async with routing(log) as router:
            taken = await take_all(router, 2, limit=2)
            assert (await log.backlog()).accepted == 3
            await router.commit([dispatched(0), dispatched(1)], taken)
        async with delivering(log) as shard:
            entries = await dispatches(shard, 2)
            await shard.finish(entries[1], attempted(1))
        await log.close()
        log = await harness.make(LogSettings())
        backlog = await log.backlog()
        assert (backlog.accepted, backlog.dispatched, backlog.attempted) == (1, 1, 1)
        await log.close()

    async def test_the_oldest_record_that_is_not_consumed(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2, delivery_shards=2))
        assert await log.oldest_unconsumed() is None
        old, older, oldest = (_aged(accepted(n), days=n) for n in (2, 3, 4))
        for record in (oldest, old, older):
            await log.append(record)
        assert await log.oldest_unconsumed() == oldest.message.received
        for number in range(2):
            async with routing(log, number) as shard:
                taken_here = await shard.take(100, NOW)
                await shard.commit([dispatched(9)] if number else [], taken_here)
        assert await log.oldest_unconsumed() == dispatched(9).delivery.message.received
        async with delivering(log, place(dispatched(9), log.counts).shard) as carrying:
            (entry,) = await dispatches(carrying, 1)
            await carrying.finish(entry, attempted(9))
        assert await log.oldest_unconsumed() == queue_id_time(queue_id(9))
        await log.close()

    async def test_over_the_mark_new_mail_is_turned_away_and_old_mail_flows(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(backlog_max=3))
        assert isinstance(log.condition(), Usable)
        for n in range(3):
            await log.append(accepted(n))
        assert isinstance(log.condition(), Full)
        async with routing(log) as shard:
            await shard.commit([], await take_all(shard, 3))
            assert isinstance(log.condition(), Usable)
        await log.close()

    async def test_purge_removes_old_events_and_nothing_else(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(events_kept="1d"))  # type: ignore[arg-type]
        now = datetime.now(UTC)
        old, new = event(1, time=now - timedelta(days=2)), event(1, time=now - timedelta(hours=1))
        await log.append(accepted(1))  # received years ago, by its date
        async with routing(log) as shard:
            await shard.commit([pending(1), dispatched(1), old, new], [])
        await log.purge()
        assert [e async for e in log.history(queue_id(1))] == [new]
        async with routing(log) as shard:
            assert await lines(shard) == [pending(1)]
            assert numbers(await take_all(shard, 1)) == [accepted(1)]
        async with delivering(log) as deliverer:
            assert len(await dispatches(deliverer, 1)) == 1
        await log.close()

    # --- what cannot be read

    @pytest.mark.parametrize("topic", [ACCEPTED, DISPATCHED], ids=lambda topic: topic.name)
    async def test_a_frame_of_another_version_stops_the_reader_and_stays(self, harness: Harness, topic: Topic) -> None:
        log = await harness.make(LogSettings())
        frame = bytearray(encode(accepted(1)) or b"")
        frame[2] = 9
        await harness.plant(log, topic, 0, bytes(frame))
        for _ in range(2):  # it is still there for the next owner
            with pytest.raises(LogUnusable, match=rf"{topic.name}, shard 0, offset \d+.*version is 9"):  # noqa: PT012
                if topic is ACCEPTED:
                    async with routing(log) as router:
                        await router.take(10, NOW)
                else:
                    async with delivering(log) as shard:
                        await shard.take(10)
        await log.close()

    async def test_appends_may_be_cancelled_without_harm(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        tasks = [asyncio.ensure_future(log.append(accepted(n))) for n in range(10)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await log.append(accepted(99))
        async with routing(log) as shard:
            seen = {e.record.message.queue_id for e in await take_all(shard, 6) if isinstance(e.record, Accepted)}
        assert {queue_id(n) for n in (1, 3, 5, 7, 9)} <= seen
        await log.close()
