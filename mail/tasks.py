"""Start and cancellation of background tasks, and waits for an event with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` while the block runs, and cancel it at the end of the block. Unlike in a TaskGroup, the errors of the
    block are raised as they are, and those of `work` are ignored.
    """
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        await cancel_tasks(*tasks)


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
