"""Tests of the correction of retry times after a clock that was ahead was set right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from msgspec.structs import replace

from mail.message import Spooled
from mail.record import Active, Attempted, Dispatched, QueueEntry, WaitCause, Waiting
from mail.route import ToRelay
from router import server
from router.clock_step import ClockStep, due_now
from router.shard import RouterResources
from tests.support.builders.records import NOON, queue_entry
from tests.support.builders.routing import CONTENT, deferred
from tests.support.servers.ports import wait_until
from tests.unit.router.test_shard import RouterSetup, accepted_now, succeed

MINUTE, HOUR, YEAR = timedelta(minutes=1), timedelta(hours=1), timedelta(days=365)
SCHEDULE = (MINUTE, HOUR)


def waiting(wait: timedelta, cause: WaitCause = WaitCause.DEFERRED, attempts: int = 1) -> QueueEntry:
    return replace(queue_entry(), state=Waiting(NOON + wait, cause, "a reason"), attempts=attempts)


@pytest.mark.parametrize(
    ("entry", "is_corrected"),
    [
        (waiting(MINUTE), False),
        (waiting(2 * MINUTE), True),
        (waiting(HOUR, attempts=2), False),
        (waiting(HOUR, attempts=9), False),
        (waiting(YEAR, attempts=9), True),
        (waiting(-YEAR), False),
        (waiting(15 * MINUTE, WaitCause.UNRESOLVED, 0), False),
        (waiting(HOUR, WaitCause.UNRESOLVED, 0), True),
        (waiting(timedelta(0), WaitCause.THROTTLED, 0), False),
        (waiting(HOUR, WaitCause.THROTTLED, 0), True),
        (waiting(YEAR, WaitCause.HELD), False),
        (replace(queue_entry(), state=Active(NOON + YEAR)), False),
    ],
)
def test_retry_time_beyond_the_schedule_is_due_now(entry: QueueEntry, is_corrected: bool) -> None:
    corrected = list(due_now([entry], SCHEDULE, NOON))
    assert bool(corrected) == is_corrected
    for each in corrected:
        assert isinstance(entry.state, Waiting)
        assert each == replace(entry, state=Waiting(NOON, entry.state.cause, "a reason"))


def test_step_back_of_the_wall_clock_is_detected() -> None:
    clock = ClockStep()
    readings = [
        (timedelta(0), 100.0, False),
        (timedelta(seconds=10), 110.0, False),
        (timedelta(seconds=19.5), 120.0, False),  # slewed
        (YEAR, 130.0, False),  # set ahead
        (YEAR + timedelta(seconds=60), 190.0, False),
        (timedelta(seconds=100), 200.0, True),  # set right
        (timedelta(seconds=110), 210.0, False),
        (timedelta(seconds=3720), 3820.0, False),  # the machine slept
    ]
    for wall, monotonic, is_back in readings:
        assert clock.is_back(NOON + wall, monotonic) is is_back, wall


class WallClock:
    ahead = YEAR

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def defer(request: Dispatched) -> Attempted:
    outcomes = tuple(map(deferred, request.delivery.message.envelope.recipients))
    started = datetime.now(UTC)
    spooled = Spooled("d", len(CONTENT), "0" * 32)
    return Attempted(request.delivery.id, request.number, outcomes, started, timedelta(0), spooled)


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_mail_deferred_by_a_clock_one_year_ahead_is_retried(
    monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    clock = WallClock()
    monkeypatch.setattr(server, "RouterResources", partial(RouterResources, now=clock.now))
    setup = RouterSetup(relay=ToRelay("smart.test", 25), deliver=defer)

    async def is_deferred() -> bool:
        return any(isinstance(entry.state, Waiting) for entry in await setup.entries())

    mail = accepted_now("u@far.test")
    mail = replace(mail, message=replace(mail.message, received=clock.now()))
    async with setup.running():
        await setup.log.append(mail)
        await wait_until(is_deferred)
        setup.deliver = succeed
        if not is_restarted:
            clock.ahead = timedelta(0)
            await wait_until(lambda: setup.is_closed(mail))
    if is_restarted:
        clock.ahead = timedelta(0)
        async with setup.running():
            await wait_until(lambda: setup.is_closed(mail))
    assert await setup.entries() == []
