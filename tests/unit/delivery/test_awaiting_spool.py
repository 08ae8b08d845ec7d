"""Tests of deliveries that wait for a failing spool: they use no slots of others."""

from __future__ import annotations

import asyncio

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
