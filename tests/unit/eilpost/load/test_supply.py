"""New messages at a steady rate, and retries when they are due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from eilpost.load.supply import Supply
from eilpost.load.workload import OutgoingMessage, Workload
from tests.support.servers.listener import settle


def messages(count: int) -> Iterator[OutgoingMessage]:
    workload = Workload("run1")
    return (workload.message(number) for number in range(count))


async def test_rate_does_not_depend_on_the_number_of_sessions() -> None:
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


async def test_supply_catches_up_at_most_one_second() -> None:
    supply = Supply(messages(1000), per_second=20)
    assert await supply.take() is not None
    supply.finished()
    supply._due -= 60  # as if no message was taken for a minute
    started_at, at_once = time.monotonic(), 0
    while time.monotonic() - started_at < 0.5:
        async with asyncio.timeout(2):
            await supply.take()
        supply.finished()
        at_once += 1
    assert 15 <= at_once <= 40


async def test_retry_is_returned_when_due_and_delays_the_end() -> None:
    supply = Supply(messages(1))
    message = await supply.take()
    assert message is not None
    started_at = time.monotonic()
    other = asyncio.create_task(supply.take())
    supply.retry(message, 0.2)
    again = await other
    assert again is not None
    assert time.monotonic() - started_at >= 0.19
    assert (again.number, again.attempts) == (0, 1)
    end = asyncio.create_task(supply.take())
    await settle()
    assert not end.done()
    supply.finished()
    assert await end is None
    assert supply.unsent == 0


async def test_too_many_waiting_retries_stop_new_messages() -> None:
    supply = Supply(messages(10), waiting_max=2)
    for _ in range(2):
        message = await supply.take()
        assert message is not None
        supply.retry(message, 0.1)
    message = await supply.take()
    assert message is not None
    assert message.attempts == 1


async def test_stop_wakes_waiting_sessions() -> None:
    supply = Supply(messages(10), per_second=0.01)
    assert await supply.take() is not None
    waiting = asyncio.create_task(supply.take())
    await settle()
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
