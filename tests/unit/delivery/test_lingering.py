"""A spool that fails holds up who needs it, and takes no places from anybody else."""

from __future__ import annotations

import asyncio

from delivery.inflight import LINGERING, InFlight
from mail.message import Spooled
from mail.outcome import Deferred, Delivered, Outcome
from mail.record import Delivery
from mail.spool import SpoolUnavailable
from tests.support.delivering import FakeShard, FakeSpool, dispatched, relay
from tests.support.working import OK, FakeCourier, all_of, working


class Failing(FakeSpool):
    def __init__(self) -> None:
        super().__init__()
        self.works = asyncio.Event()

    async def keep(self, content: bytes) -> Spooled:
        if not self.works.is_set():
            raise SpoolUnavailable("it is gone")
        return await super().keep(content)


async def test_deferrals_that_cannot_be_spooled_hold_no_place_and_are_reported_when_they_can() -> None:
    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        return all_of(delivery, Deferred if delivery.route == relay(1) else Delivered, OK)

    shard, spool = FakeShard(), Failing()
    async with working(FakeCourier(do), shard, spool, in_flight=2):
        shard.put(*(dispatched(relay(1)) for _ in range(4)), *(dispatched(relay(2)) for _ in range(3)))
        reports = await shard.until(3)
        assert all(isinstance(report.outcomes[0], Delivered) for report in reports)
        spool.works.set()
        reports = await shard.until(7)
    assert sum(report.content is not None for report in reports) == 4
    assert len(spool.kept) == 4


def test_what_lingers_is_bounded_and_its_memory_counts() -> None:
    inflight: InFlight[str, int] = InFlight(count=1, size_bytes=100, parked=100, share_of=lambda _: 1)
    inflight.join("me")
    for number in range(30):
        inflight.add("me", number, "site", 0, 10 if number < 20 else 0)
    carried = []
    for _ in range(5):
        [one] = inflight.start()
        carried.append(one)
        assert inflight.linger(one, answered=True)
        assert not inflight.linger(one, answered=True)
        if len(carried) == LINGERING:
            break
    assert (inflight.at_work, inflight.held_bytes) == (0, 10 * LINGERING)
    [one] = inflight.start()
    assert not inflight.linger(one, answered=True)
    assert inflight.start() == []
    for each in (*carried, one):
        inflight.done(each, answered=True)
    assert (inflight.at_work, inflight.held_bytes, inflight._lingering_bytes, inflight._lingering) == (0, 0, 0, set())
