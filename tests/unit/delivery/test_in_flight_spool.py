"""Tests of deliveries that wait for a failing spool: they use no slots of others."""

from __future__ import annotations

import asyncio

from delivery.in_flight import AWAITING_SPOOL_FACTOR, InFlight
from mail.message import Spooled
from mail.outcome import Deferred, Delivered, Outcome
from mail.record import Delivery
from mail.spool import SpoolUnavailable
from tests.support.builders.delivery import FakeShard, FakeSpool, dispatched, relay
from tests.support.servers.delivery_worker import OK, FakeCourier, outcomes_for_all, running_worker


class Failing(FakeSpool):
    def __init__(self) -> None:
        super().__init__()
        self.works = asyncio.Event()

    async def put(self, content: bytes) -> Spooled:
        if not self.works.is_set():
            raise SpoolUnavailable("it is gone")
        return await super().put(content)


async def test_deferrals_waiting_for_the_spool_use_no_slot() -> None:
    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        return outcomes_for_all(delivery, Deferred if delivery.route == relay(1) else Delivered, OK)

    shard, spool = FakeShard(), Failing()
    async with running_worker(FakeCourier(do), shard, spool, max_in_flight_deliveries=2):
        shard.put(*(dispatched(relay(1)) for _ in range(4)), *(dispatched(relay(2)) for _ in range(3)))
        reports = await shard.wait_finished(3)
        assert all(isinstance(report.outcomes[0], Delivered) for report in reports)
        spool.works.set()
        reports = await shard.wait_finished(7)
    assert sum(report.content is not None for report in reports) == 4
    assert len(spool.contents) == 4


def test_deliveries_awaiting_the_spool_are_bounded_in_number_and_memory() -> None:
    in_flight: InFlight[str, int] = InFlight(slots=1, budget_bytes=100, queued_per_owner=100, site_limit=lambda _: 1)
    in_flight.register("me")
    for number in range(30):
        in_flight.add("me", number, "site", 0, 10 if number < 20 else 0)
    started = []
    for _ in range(5):
        [queued] = in_flight.start()
        started.append(queued)
        assert in_flight.set_awaiting_spool(queued, responsive=True)
        assert not in_flight.set_awaiting_spool(queued, responsive=True)
        if len(started) == AWAITING_SPOOL_FACTOR:
            break
    assert (in_flight.in_flight_count, in_flight.memory_bytes) == (0, 10 * AWAITING_SPOOL_FACTOR)
    [queued] = in_flight.start()
    assert not in_flight.set_awaiting_spool(queued, responsive=True)
    assert in_flight.start() == []
    for queued_delivery in (*started, queued):
        in_flight.finish(queued_delivery, responsive=True)
    assert (
        in_flight.in_flight_count,
        in_flight.memory_bytes,
        in_flight._awaiting_spool_bytes,
        in_flight._awaiting_spool,
    ) == (
        0,
        0,
        0,
        set(),
    )
