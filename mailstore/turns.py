"""Whose job may have a thread: few of one mailbox at a time, and none that would only wait there for a lock.

In charge of the order before the bounded pool of threads. A mailbox whose lock is held (by a process that hangs, by a
slow mailbox program) would otherwise fill every thread with jobs that wait for it, and nobody else got mail. A job
looks for the lock briefly, gives its thread back, and comes again, until it has been patient enough. Never here:
locks, files. Next: `mailstore/maildir.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mailstore.box import LOCK_SECONDS, Locked

T = TypeVar("T")

AT_ONCE = 4  # of one mailbox: they share the flush of its directory
LOOK_SECONDS = 0.02  # in a thread
AGAIN_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2)  # outside


class _Line:
    __slots__ = ("places", "users")

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(AT_ONCE)
        self.users = 0


class Turns:
    """One line for each mailbox that has jobs."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    async def run(self, owner: str, job: Callable[[float], Awaitable[T]]) -> T:
        """`job(seconds)` looks for the lock for so long in its thread; Locked says that it changed nothing. Raises
        Locked when the lock could not be had for LOCK_SECONDS from the turn on.
        """
        line = self._lines.setdefault(owner, _Line())
        line.users += 1
        try:
            async with line.places:
                clock = asyncio.get_running_loop().time
                until = clock() + LOCK_SECONDS
                tries = 0
                while True:
                    try:
                        return await job(LOOK_SECONDS)
                    except Locked:
                        if clock() >= until:
                            raise
                        await asyncio.sleep(AGAIN_SECONDS[min(tries, len(AGAIN_SECONDS) - 1)])
                        tries += 1
        finally:
            line.users -= 1
            if not line.users:
                del self._lines[owner]
