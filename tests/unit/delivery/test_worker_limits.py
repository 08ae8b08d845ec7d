"""Tests of the worker on an in-memory shard: fairness between sites, limits of memory and queue."""

from __future__ import annotations

import asyncio

from delivery.capacity import Capacity
from mail.message import Spooled
from mail.outcome import Delivered, Outcome
from mail.record import Delivery
from mail.settings_roles import DeliverySettings
from mail.spool import SpoolUnavailable
from tests.support.builders.delivery import FakeShard, FakeSpool, by_id, dispatched, relay
from tests.support.servers.delivery_worker import OK, FakeCourier, outcomes_for_all, running_worker, running_worker_of
from tests.support.servers.ports import wait_until


async def test_slow_site_does_not_block_others() -> None:
    release = asyncio.Event()

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        if delivery.route == relay(1):
            await release.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    shard, courier = FakeShard(), FakeCourier(do)
    async with running_worker(courier, shard, max_in_flight_deliveries=10, max_connections_per_site=2):
        shard.put(*(dispatched(relay(1)) for _ in range(300)))
        shard.put(*(dispatched(relay(2)) for _ in range(50)))
        reports = await shard.wait_finished(50)
        assert all(offset >= 300 for offset in shard.committed)
        assert courier.active == 4  # twice the site's connections
        release.set()
        assert len(by_id(reports)) == 50
        await shard.wait_finished(350)
    assert courier.active_max <= 10


async def test_many_stalled_sites_do_not_block_others() -> None:
    """A hundred tarpits, each with more mail than a site's limit."""

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        if delivery.route != relay(1):
            await asyncio.Event().wait()
        return outcomes_for_all(delivery, Delivered, OK)

    shard, courier = FakeShard(), FakeCourier(do)
    async with running_worker(courier, shard, drain_seconds=0.1):
        for site in range(100):
            shard.put(*(dispatched(relay(100 + site)) for _ in range(10)))
        await wait_until(lambda: shard.read_count >= 1000)
        shard.put(*(dispatched(relay(1)) for _ in range(50)))
        assert all(offset >= 1000 for offset in shard.committed)
        await shard.wait_finished(50)
        assert 300 < courier.active_max <= 500  # the tarpits get their share


async def test_stalled_sites_with_large_messages_do_not_block_others() -> None:
    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        if delivery.route != relay(1):
            await asyncio.Event().wait()
        return outcomes_for_all(delivery, Delivered, OK)

    shard, spool, courier = FakeShard(), FakeSpool(), FakeCourier(do)
    large = await spool.put(b"x" * 300_000)
    async with running_worker(courier, shard, spool, drain_seconds=0.1, max_in_flight_bytes="4MiB"):
        for site in range(4):
            shard.put(*(dispatched(relay(100 + site), content=large) for _ in range(20)))
        await wait_until(lambda: shard.read_count >= 80 and courier.active >= 4)
        shard.put(*(dispatched(relay(1), content=b"y" * 100_000) for _ in range(50)))
        await shard.wait_finished(50)
        assert 4 <= sum(one.route != relay(1) for one, _ in courier.delivered) <= 12


async def test_content_of_a_slow_site_is_spooled_when_memory_is_full() -> None:
    release = asyncio.Event()

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        if delivery.route == relay(1):
            await release.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    shard, spool = FakeShard(), FakeSpool()
    content = b"x" * 200_000
    async with running_worker(
        FakeCourier(do),
        shard,
        spool,
        max_in_flight_deliveries=10,
        max_connections_per_site=1,
        max_in_flight_bytes="2MiB",
    ):
        shard.put(*(dispatched(relay(1), content=content) for _ in range(50)))
        shard.put(*(dispatched(relay(2), content=content) for _ in range(20)))
        await shard.wait_finished(20)
        assert len(spool.contents) > 30
        release.set()
        await shard.wait_finished(70)


async def test_memory_limits_reading_of_large_spooled_messages() -> None:
    shard, spool = FakeShard(), FakeSpool()
    spooled = await spool.put(b"x" * 900_000)
    courier = FakeCourier()
    async with running_worker(courier, shard, spool, max_in_flight_bytes="1MiB"):
        shard.put(*(dispatched(relay(1), content=spooled) for _ in range(5)))
        await shard.wait_finished(5)
    assert courier.active_max == 1


async def test_memory_freed_while_the_spool_fails_is_noticed() -> None:
    """Memory is full of content for a slow site, the spool fails, and a delivery finishes in the meantime."""
    failing, shard = asyncio.Event(), FakeShard()

    class Failing(FakeSpool):
        async def put(self, content: bytes) -> Spooled:
            failing.set()
            await shard.wait_finished(1)
            raise SpoolUnavailable("full")

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        if delivery.route == relay(1):
            await asyncio.Event().wait()
        if delivery.route == relay(2):
            await failing.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    heavy = b"x" * 250_000
    async with running_worker(
        FakeCourier(do), shard, Failing(), drain_seconds=0.1, max_in_flight_bytes="1MiB", max_connections_per_site=1
    ):
        shard.put(*(dispatched(relay(1), content=heavy) for _ in range(3)), dispatched(relay(2), content=heavy))
        await failing.wait()
        shard.put(dispatched(relay(3)))
        reports = await shard.wait_finished(2)
    assert len(reports) == 2


async def test_read_limit_follows_the_largest_content() -> None:
    go = asyncio.Event()

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        await go.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    shard, courier = FakeShard(), FakeCourier(do)
    async with running_worker(courier, shard, max_in_flight_bytes="4MiB"):  # a spool.max_inline_size of 1 MiB or more
        shard.put(dispatched(relay(1), content=b"x" * 1_000_000))
        await wait_until(lambda: shard.read_count >= 1)
        shard.put(*(dispatched(relay(number), content=b"x" * 1_000_000) for number in range(2, 20)))
        await wait_until(lambda: shard.read_count >= 2)
        assert shard.read_count <= 4
        go.set()
        await shard.wait_finished(19)
    assert courier.active_max <= 4


async def test_shard_lost_while_memory_is_full() -> None:
    """The worker does not read, so only `lost` ends it."""

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        await asyncio.Event().wait()
        raise AssertionError

    shard, courier, spool = FakeShard(), FakeCourier(do), FakeSpool()
    settings = DeliverySettings(max_in_flight_deliveries=1, max_in_flight_bytes="256KiB", max_connections_per_site=1)
    capacity = Capacity(settings, spool)
    async with running_worker_of(capacity, courier, shard, spool) as task:
        shard.put(*(dispatched(relay(1), content=b"x" * 250_000) for _ in range(4)))
        await wait_until(lambda: courier.active and capacity.freed)
        shard.revoke()
        async with asyncio.timeout(0.5):
            await task
    assert shard.finished == []


async def test_shard_lost_while_the_queue_is_full() -> None:
    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        await asyncio.Event().wait()
        raise AssertionError

    shard, courier, spool = FakeShard(), FakeCourier(do), FakeSpool()
    capacity = Capacity(DeliverySettings(max_in_flight_deliveries=1), spool, queued_max=20)
    async with running_worker_of(capacity, courier, shard, spool) as task:
        shard.put(*(dispatched(relay(1)) for _ in range(30)))
        await wait_until(lambda: shard.read_count >= 20 and capacity.freed)
        shard.revoke()
        async with asyncio.timeout(0.5):
            await task
