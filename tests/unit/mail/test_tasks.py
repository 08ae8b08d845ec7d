"""Ends of tasks, and waits with a limit."""

from __future__ import annotations

import asyncio
from itertools import islice

import pytest
from structlog.testing import capture_logs

from mail.backoff import backoff
from mail.tasks import background, cancel_tasks, is_set_within, periodically


async def test_cancelled_tasks_have_ended_and_their_errors_are_ignored() -> None:
    ended: list[str] = []

    async def wait_and_fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("first")
            raise ValueError("while it was cancelled")

    tasks = [asyncio.create_task(wait_and_fail()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    await cancel_tasks(*tasks, None)
    assert (ended, [task.done() for task in tasks], tasks[1].cancelled()) == (["first"], [True, True], True)
    await cancel_tasks(*tasks)
    await cancel_tasks()


async def test_background_work_ends_with_the_block_and_errors_of_the_block_are_raised_as_they_are() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fail_in_block() -> None:
        async with background(work()):
            await started.wait()
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        await fail_in_block()
    assert ended.is_set()


async def test_an_error_of_background_work_cancels_the_block_and_is_raised_as_it_is() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        async with background(fail()):
            await asyncio.Event().wait()


async def test_the_error_of_the_block_is_raised_before_those_of_cancelled_work() -> None:
    started = asyncio.Event()

    async def fail_at_cancellation() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("of the work")

    async def fail_in_block() -> None:
        async with background(fail_at_cancellation()):
            await started.wait()
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        await fail_in_block()


async def test_cancellation_of_the_block_stays_a_cancellation() -> None:
    async def wait_in_block() -> None:
        async with background(asyncio.sleep(60)):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait_in_block())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_periodic_calls_go_on_after_an_exception_which_is_logged_once() -> None:
    results = iter([ValueError("disk"), ValueError("disk"), None, ValueError("disk"), OSError("other"), None])
    ended = asyncio.Event()

    async def act() -> None:
        result = next(results, ended)
        if isinstance(result, Exception):
            raise result
        if result is ended:
            ended.set()

    with capture_logs() as lines:
        async with background(periodically(0, act, "not checked, retrying", path="/spool")):
            await ended.wait()
    assert [(line["event"], line["path"], line["log_level"]) for line in lines] == [
        ("not checked, retrying", "/spool", "error")
    ] * 3


async def test_a_wait_ends_with_the_event_or_the_limit() -> None:
    event = asyncio.Event()
    assert not await is_set_within(event, 0.001)
    assert not await is_set_within(event, -1)
    asyncio.get_running_loop().call_soon(event.set)
    assert await is_set_within(event, None)
    assert await is_set_within(event, -1)


def test_a_pause_doubles_up_to_the_longest() -> None:
    assert list(islice(backoff(0.1, 0.5), 5)) == [0.1, 0.2, 0.4, 0.5, 0.5]
