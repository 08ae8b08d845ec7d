"""The supply hands messages out steadily, and again when they are to be sent again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from eilpost.load.plan import OutgoingMessage, Plan
from eilpost.load.supply import Supply


def messages(count: int) -> Iterator[OutgoingMessage]:
    plan = Plan("run1")
    return (plan.message(number) for number in range(count))


async def test_a_rate_is_steady_whatever_the_number_of_sessions() -> None:
    supply = Supply(messages(50), per_second=100)
    times: list[float] = []

    async def session() -> None:
        while await supply.take() is not None:
            times.append(time.monotonic())
            supply.finished()

    async with asyncio.TaskGroup() as sessions:
        for _ in range(10):
            sessions.create_task(session())
    assert len(times) == 50
    assert 0.45 <= times[-1] - times[0] <= 3
    first = sum(at - times[0] < 0.1 for at in times)
    assert first <= 15  # no burst of all sessions at the start


async def test_what_was_missed_is_caught_up_for_one_second_at_most() -> None:
    supply = Supply(messages(1000), per_second=20)
    assert await supply.take() is not None
    supply.finished()
    supply._due -= 60  # as if nobody had taken anything for a minute
    began, at_once = time.monotonic(), 0
    while time.monotonic() - began < 0.5:
        async with asyncio.timeout(2):
            await supply.take()
        supply.finished()
        at_once += 1
    assert 15 <= at_once <= 40


async def test_a_message_comes_again_when_its_time_has_come_and_the_end_waits_for_it() -> None:
    supply = Supply(messages(1))
    message = await supply.take()
    assert message is not None
    began = time.monotonic()
    other = asyncio.create_task(supply.take())
    supply.retry(message, 0.2)
    again = await other
    assert again is not None
    assert time.monotonic() - began >= 0.19
    assert (again.number, again.attempts) == (0, 1)
    end = asyncio.create_task(supply.take())
    await asyncio.sleep(0.05)
    assert not end.done()
    supply.finished()
    assert await end is None
    assert supply.unsent == 0


async def test_too_many_to_be_sent_again_hold_up_new_ones() -> None:
    supply = Supply(messages(10), waiting_max=2)
    for _ in range(2):
        message = await supply.take()
        assert message is not None
        supply.retry(message, 0.1)
    message = await supply.take()
    assert message is not None
    assert message.attempts == 1


async def test_a_stop_wakes_who_waits_and_an_end_begins_nothing_new() -> None:
    supply = Supply(messages(10), per_second=0.01)
    assert await supply.take() is not None
    waiting = asyncio.create_task(supply.take())
    await asyncio.sleep(0.01)
    supply.stop()
    assert await waiting is None
    assert supply.unsent == 1

    supply = Supply(messages(10))
    message = await supply.take()
    assert message is not None
    supply.retry(message, 0.0)
    supply.stop_new()
    again = await supply.take()
    assert again is not None
    assert again.number == message.number
    supply.finished()
    assert await supply.take() is None
