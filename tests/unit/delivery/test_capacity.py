"""Bounds that hold for a process, however many shards it owns, and attempts that cannot be reported."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from delivery.attempt import AttemptResult, AttemptRunner
from delivery.capacity import Capacity
from delivery.server import DeliveryAgent as DeliveryRole
from delivery.worker import ReportFailed
from mail.directory.static import StaticDirectory
from mail.log.memory import MemoryLog
from mail.message import Spooled
from mail.outcome import Deferred, Delivered, Outcome
from mail.record import Attempted, Delivery, Dispatched
from mail.settings import DeliverySettings, LogSettings, NodeSettings
from mailstore.memory import MemoryMailboxes
from tests.support.builders.delivery import FakeShard, FakeSpool, dispatched, mailbox, relay
from tests.support.builders.routing import snapshot
from tests.support.clients.couriers import HostResolver
from tests.support.docs.metrics import value
from tests.support.servers.delivery_worker import OK, FakeCourier, outcomes_for_all, running_worker, running_worker_of


async def never_answer(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
    await asyncio.Event().wait()
    raise AssertionError


async def test_what_is_in_flight_is_counted_for_all_shards_together() -> None:
    release = asyncio.Event()

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        await release.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    spool, courier = FakeSpool(), FakeCourier(do)
    capacity = Capacity(DeliverySettings(in_flight=2, connections_per_site=10), spool)
    shards = [FakeShard() for _ in range(8)]
    async with AsyncExitStack() as stack:
        for number, shard in enumerate(shards):
            await stack.enter_async_context(running_worker_of(capacity, courier, shard, spool))
            shard.put(*(dispatched(relay(100 * number + site)) for site in range(3)))
        await asyncio.sleep(0.1)
        assert courier.active == courier.active_max == 2
        release.set()  # what ends at one shard lets another's begin
        for shard in shards:
            await shard.wait_finished(3)
    assert courier.active_max == 2


async def test_a_wait_for_a_slot_is_counted_and_no_wait_is_not() -> None:
    release = asyncio.Event()

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        await release.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    def waits() -> tuple[float, float]:
        return value("delivery_throttle_seconds_count"), value("delivery_throttle_seconds_sum")

    shard, (count, seconds) = FakeShard(), waits()
    async with running_worker(FakeCourier(do), shard, in_flight=8, connections_per_site=1):
        shard.put(*(dispatched(relay(1)) for _ in range(3)))
        await asyncio.sleep(0.2)
        assert waits()[0] - count == 0
        release.set()
        await shard.wait_finished(3)
        assert waits()[0] - count == 1
        assert waits()[1] - seconds >= 0.15


async def test_memory_is_counted_for_all_shards_together_and_each_gets_its_part() -> None:
    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        if delivery.route == relay(1):
            return await never_answer(delivery, content)
        return outcomes_for_all(delivery, Delivered, OK)

    spool, courier = FakeSpool(), FakeCourier(do)
    capacity = Capacity(DeliverySettings(in_flight=10, connections_per_site=1, in_flight_bytes="2MiB"), spool)
    slow, quick = FakeShard(), FakeShard()
    async with (
        running_worker_of(capacity, courier, slow, spool, drain_seconds=0.1),
        running_worker_of(capacity, courier, quick, spool),
    ):
        slow.put(*(dispatched(relay(1), content=b"x" * 200_000) for _ in range(60)))
        while slow.read_count < 60:
            await asyncio.sleep(0)
            assert capacity.in_flight.memory_bytes <= 2 * (2 << 20)
        quick.put(*(dispatched(relay(2), content=b"y" * 200_000) for _ in range(20)))
        await quick.wait_finished(20)
        assert capacity.in_flight.memory_bytes <= 2 << 20


async def test_a_shard_that_is_lost_lets_go_of_its_own_and_the_others_go_on() -> None:
    spool, courier = FakeSpool(), FakeCourier(never_answer)
    capacity = Capacity(DeliverySettings(in_flight=1), spool)
    first, second = FakeShard(), FakeShard()
    async with running_worker_of(capacity, courier, second, spool, drain_seconds=0.1):
        async with running_worker_of(capacity, courier, first, spool, drain_seconds=0.1) as task:
            first.put(*(dispatched(relay(1)) for _ in range(5)))
            while courier.active < 1:
                await asyncio.sleep(0)
            second.put(dispatched(relay(2)))
            await asyncio.sleep(0.05)
            first.revoke()
            await task
        await asyncio.sleep(0.05)
        assert [delivery.route for delivery, _ in courier.delivered] == [relay(1), relay(2)]
        assert (capacity.in_flight.queued, capacity.in_flight.active) == (0, 1)


async def test_what_another_shard_unloads_is_not_lost_when_that_shard_goes() -> None:
    """One worker makes room by moving the content of another's; it is given up in the middle."""
    keeping = asyncio.Event()

    class Slow(FakeSpool):
        async def put(self, content: bytes) -> Spooled:
            keeping.set()
            return await asyncio.Event().wait()  # type: ignore[return-value]

    release = asyncio.Event()

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        await release.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    spool, courier = Slow(), FakeCourier(do)
    capacity = Capacity(DeliverySettings(in_flight=1, in_flight_bytes="1MiB"), spool)
    owner, other = FakeShard(), FakeShard()
    async with running_worker_of(capacity, courier, owner, spool):
        owner.put(*(dispatched(relay(1), content=b"x" * 250_000) for _ in range(2)))
        while owner.read_count < 2:
            await asyncio.sleep(0)
        async with running_worker_of(capacity, courier, other, spool) as task:
            other.put(*(dispatched(relay(2), content=b"x" * 250_000) for _ in range(3)))
            await keeping.wait()
            other.revoke()
            release.set()
            await task
        await owner.wait_finished(2)


async def test_a_bug_at_the_report_defers_and_who_has_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrong(self: AttemptRunner, dispatched: Dispatched, carriage: AttemptResult, waits: object) -> Attempted:
        raise ZeroDivisionError

    monkeypatch.setattr(AttemptRunner, "attempted", wrong)

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        first, second = (recipient.address for recipient in delivery.message.envelope.recipients)
        return Delivered(first, OK), Deferred(second, OK)

    shard = FakeShard()
    async with running_worker(FakeCourier(do), shard):
        shard.put(dispatched(relay(1), "a@r.test", "b@r.test"))
        (report,) = await shard.wait_finished(1)
    assert [type(outcome) for outcome in report.outcomes] == [Delivered, Deferred]
    assert report.outcomes[1].reply.enhanced == "4.3.0"
    assert report.content is not None


async def test_a_bug_before_there_is_anything_to_report_defers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrong(self: AttemptRunner, dispatched: Dispatched) -> AttemptResult:
        raise ZeroDivisionError

    monkeypatch.setattr(AttemptRunner, "deliver", wrong)
    shard = FakeShard()
    async with running_worker(FakeCourier(), shard):
        shard.put(dispatched(relay(1)))
        (report,) = await shard.wait_finished(1)
    assert isinstance(report.outcomes[0], Deferred)


async def test_a_report_that_cannot_be_made_at_all_gives_the_shard_up() -> None:
    shard = FakeShard()
    shard.broken = 2  # the report, and the one that says so
    with pytest.raises(ReportFailed):  # noqa: PT012
        async with running_worker(FakeCourier(), shard) as task:
            shard.put(dispatched(relay(1)))
            await asyncio.wait({task})
    assert shard.committed == []


async def test_a_shard_that_was_given_up_is_taken_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delivery.server._RESTART_SECONDS", 0.01)
    log = MemoryLog(LogSettings())
    broken = [True, True]
    write = log.write

    def fragile(records: Any, consumed: Any = ()) -> None:
        if isinstance(records[0], Attempted) and broken:
            broken.pop()
            raise ZeroDivisionError
        write(records, consumed)

    monkeypatch.setattr(log, "write", fragile)
    role = DeliveryRole(
        settings=DeliverySettings(),
        node=NodeSettings(),
        log=log,
        spool=FakeSpool(),
        directory=StaticDirectory(snapshot(["alice@example.test"])),
        resolver=HostResolver(),
        mailboxes=MemoryMailboxes(),
    )
    stop = asyncio.Event()
    running = asyncio.create_task(role.run(lambda: None, stop))
    await log.append(dispatched(mailbox()))
    async with asyncio.timeout(5):
        while (await log.backlog()).attempted == 0:
            await asyncio.sleep(0.01)
        assert (await log.backlog()).dispatched == 0
        stop.set()
        await running
