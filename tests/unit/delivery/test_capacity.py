"""Tests of the limits of a process with several shards, and of attempts that cannot be reported."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from delivery.attempt import AttemptResult, AttemptRunner
from delivery.capacity import Capacity
from delivery.own_addresses import OwnAddresses
from delivery.pool import Pool
from delivery.server import DeliveryRole
from delivery.smtp_courier import SmtpCourier
from delivery.worker import ReportFailed
from mail.log.memory import MemoryLog
from mail.message import Spooled
from mail.outcome import Deferred, Delivered, Outcome
from mail.record import Attempted, Delivery, Dispatched
from mail.route import ToMx
from mail.settings import LogSettings, NodeSettings
from mail.settings_roles import DeliverySettings
from mailstore.memory import MemoryMailboxes
from tests.support.builders.delivery import FakeShard, FakeSpool, dispatched, mailbox, relay
from tests.support.builders.routing import snapshot
from tests.support.clients.couriers import HostResolver
from tests.support.docs.metrics import value
from tests.support.servers.delivery_worker import OK, FakeCourier, outcomes_for_all, running_worker, running_worker_of
from tests.support.servers.listener import settle
from tests.support.servers.ports import wait_until
from tests.support.servers.scripted_remote import ScriptedRemote, Wait
from tests.support.servers.static_directory import StaticDirectory


async def never_answer(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
    await asyncio.Event().wait()
    raise AssertionError


async def test_in_flight_limit_is_shared_by_all_shards() -> None:
    release = asyncio.Event()

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        await release.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    spool, courier = FakeSpool(), FakeCourier(do)
    capacity = Capacity(DeliverySettings(max_in_flight_deliveries=2, max_connections_per_site=10), spool)
    shards = [FakeShard() for _ in range(8)]
    async with AsyncExitStack() as stack:
        for number, shard in enumerate(shards):
            await stack.enter_async_context(running_worker_of(capacity, courier, shard, spool))
            shard.put(*(dispatched(relay(100 * number + site)) for site in range(3)))
        await wait_until(lambda: courier.active == 2 and all(shard.read_count == 3 for shard in shards))
        release.set()  # a delivery that finishes in one shard frees a slot for the other
        for shard in shards:
            await shard.wait_finished(3)
    assert courier.active_max == 2


async def test_only_a_real_wait_for_a_slot_is_observed() -> None:
    release = asyncio.Event()

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        await release.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    def waits() -> tuple[float, float]:
        return value("delivery_slot_wait_seconds_count"), value("delivery_slot_wait_seconds_sum")

    shard, (count, seconds) = FakeShard(), waits()
    async with running_worker(FakeCourier(do), shard, max_in_flight_deliveries=8, max_connections_per_site=1):
        shard.put(*(dispatched(relay(1)) for _ in range(3)))
        await asyncio.sleep(0.2)
        assert waits()[0] - count == 0
        release.set()
        await shard.wait_finished(3)
        assert waits()[0] - count == 1
        assert waits()[1] - seconds >= 0.15


async def test_memory_limit_is_shared_by_all_shards() -> None:
    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        if delivery.route == relay(1):
            return await never_answer(delivery, content)
        return outcomes_for_all(delivery, Delivered, OK)

    spool, courier = FakeSpool(), FakeCourier(do)
    capacity = Capacity(
        DeliverySettings(max_in_flight_deliveries=10, max_connections_per_site=1, max_in_flight_bytes="2MiB"), spool
    )
    slow, quick = FakeShard(), FakeShard()
    async with (
        running_worker_of(capacity, courier, slow, spool, drain_seconds=0.1),
        running_worker_of(capacity, courier, quick, spool),
    ):
        slow.put(*(dispatched(relay(1), content=b"x" * 200_000) for _ in range(60)))
        while slow.read_count < 60:
            await asyncio.sleep(0)
            assert capacity.scheduler.memory_bytes <= 2 * (2 << 20)
        quick.put(*(dispatched(relay(2), content=b"y" * 200_000) for _ in range(20)))
        await quick.wait_finished(20)
        assert capacity.scheduler.memory_bytes <= 2 << 20


async def test_site_has_one_window_for_deliveries_and_connections() -> None:
    """An unproven site has two deliveries in flight, each with a connection; both limits grow with its replies."""
    go = asyncio.Event()
    async with ScriptedRemote({"DOT": [*[Wait(go, "250 ok")] * 30]}) as remote:
        settings, spool, shard = DeliverySettings(mx_port=remote.port), FakeSpool(), FakeShard()
        capacity = Capacity(settings, spool)
        pool = Pool(
            settings=settings,
            windows=capacity.windows,
            resolver=HostResolver(),
            hostname="us.test",
            own_addresses=OwnAddresses(),
        )
        async with running_worker_of(capacity, SmtpCourier(pool), shard, spool):
            shard.put(*(dispatched(ToMx("r.test", ((10, "127.0.0.1"),))) for _ in range(30)))
            await wait_until(lambda: remote.commands.count("DOT") == 2)
            await settle()
            assert (len(remote.sessions), capacity.scheduler.in_flight_count) == (2, 2)
            go.set()
            await shard.wait_finished(30)
            assert len(remote.sessions) > 2
            assert all(isinstance(report.outcomes[0], Delivered) for report in shard.finished)
        await pool.close()


async def test_lost_shard_frees_its_deliveries_and_others_continue() -> None:
    spool, courier = FakeSpool(), FakeCourier(never_answer)
    capacity = Capacity(DeliverySettings(max_in_flight_deliveries=1), spool)
    first, second = FakeShard(), FakeShard()
    async with running_worker_of(capacity, courier, second, spool, drain_seconds=0.1):
        async with running_worker_of(capacity, courier, first, spool, drain_seconds=0.1) as task:
            first.put(*(dispatched(relay(1)) for _ in range(5)))
            await wait_until(lambda: courier.active >= 1)
            second.put(dispatched(relay(2)))
            await wait_until(lambda: second.read_count == 1)
            first.revoke()
            await task
        await wait_until(lambda: len(courier.delivered) == 2)
        assert [delivery.route for delivery, _ in courier.delivered] == [relay(1), relay(2)]
        assert (capacity.scheduler.queued, capacity.scheduler.in_flight_count) == (0, 1)


async def test_content_spooled_for_another_shard_survives_cancellation() -> None:
    """A worker spools content of another shard and is cancelled meanwhile."""
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
    capacity = Capacity(DeliverySettings(max_in_flight_deliveries=1, max_in_flight_bytes="1MiB"), spool)
    owner, other = FakeShard(), FakeShard()
    async with running_worker_of(capacity, courier, owner, spool):
        owner.put(*(dispatched(relay(1), content=b"x" * 250_000) for _ in range(2)))
        await wait_until(lambda: owner.read_count >= 2)
        async with running_worker_of(capacity, courier, other, spool) as task:
            other.put(*(dispatched(relay(2), content=b"x" * 250_000) for _ in range(3)))
            await keeping.wait()
            other.revoke()
            release.set()
            await task
        await owner.wait_finished(2)


async def test_bug_in_the_report_defers_only_undelivered_recipients(monkeypatch: pytest.MonkeyPatch) -> None:
    async def raising(
        self: AttemptRunner, dispatched: Dispatched, result: AttemptResult, on_spool_wait: object
    ) -> Attempted:
        raise ZeroDivisionError

    monkeypatch.setattr(AttemptRunner, "make_report", raising)

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


async def test_bug_in_the_attempt_defers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def raising(self: AttemptRunner, dispatched: Dispatched) -> AttemptResult:
        raise ZeroDivisionError

    monkeypatch.setattr(AttemptRunner, "deliver", raising)
    shard = FakeShard()
    async with running_worker(FakeCourier(), shard):
        shard.put(dispatched(relay(1)))
        (report,) = await shard.wait_finished(1)
    assert isinstance(report.outcomes[0], Deferred)


async def test_unreportable_attempt_releases_the_shard() -> None:
    shard = FakeShard()
    shard.broken = 2  # the report, and the report of the internal error
    with pytest.raises(ReportFailed):  # noqa: PT012
        async with running_worker(FakeCourier(), shard) as task:
            shard.put(dispatched(relay(1)))
            await asyncio.wait({task})
    assert shard.committed == []


async def test_released_shard_is_acquired_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delivery.server._RESTART_SECONDS", 0.01)
    log = MemoryLog(LogSettings())
    broken = [True, True]
    write = log.write

    def raising(records: Any, consumed: Any = ()) -> None:
        if isinstance(records[0], Attempted) and broken:
            broken.pop()
            raise ZeroDivisionError
        write(records, consumed)

    monkeypatch.setattr(log, "write", raising)
    role = DeliveryRole(
        settings=DeliverySettings(),
        node=NodeSettings(),
        log=log,
        spool=FakeSpool(),
        directory=StaticDirectory(snapshot(["alice@example.test"])),
        resolver=HostResolver(),
        mailboxes=MemoryMailboxes(),
        own_addresses=OwnAddresses(),
    )
    stop = asyncio.Event()
    running = asyncio.create_task(role.run(lambda: None, stop))
    await log.append(dispatched(mailbox()))

    async def is_reported() -> bool:
        return (await log.backlog()).attempted > 0

    await wait_until(is_reported)
    assert (await log.backlog()).dispatched == 0
    stop.set()
    await asyncio.wait_for(running, 5)
