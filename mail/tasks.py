"""Background tasks: start, periodic calls, cancellation, and waits for an event with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

logger = structlog.get_logger()


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` while the block runs, and cancel it at the end of the block. An error of `work` cancels the block.
    Unlike in a TaskGroup, one error is raised as it is: that of the block, else the first of `work`.
    """
    block_error: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
            try:
                yield
            except Exception as error:  # raised again
                block_error = error
                raise
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise (block_error or errors.exceptions[0]) from None


async def periodically(
    seconds: float,
    action: Callable[[], Awaitable[object]],
    failure_event: str,
    *,
    at_once: bool = False,
    **fields: object,
) -> None:
    """Call `action` every `seconds` until cancelled, the first time after `seconds` unless `at_once`. An exception is
    logged with its traceback, unless the call before raised the same, and the calls continue.
    """
    last = ""
    if not at_once:
        await asyncio.sleep(seconds)
    while True:
        try:
            await action()
            last = ""
        except Exception as error:  # the boundary of a background task
            if repr(error) != last:
                logger.exception(failure_event, **fields)
            last = repr(error)
        await asyncio.sleep(seconds)


async def cancel_tasks(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel the tasks and wait until they have ended. Their errors are ignored."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def is_set_within(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for `event` for at most `seconds` (None: without limit); whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()
