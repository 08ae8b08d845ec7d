"""Whose job may have a thread: few of one mailbox at a time, and none that would only wait there for a lock.

In charge of the order before the bounded pool of threads. A mailbox whose lock is held (by a process that hangs, by a
slow mailbox program) would otherwise fill every thread with jobs that wait for it, and nobody else got mail. A job
looks for the lock briefly, gives its thread back, and comes again, until it has been patient enough. Never here:
locks, files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mailstore.mailbox_lock import LOCK_SECONDS, MailboxLocked

T = TypeVar("T")

CONCURRENT_MAX = 4  # of one mailbox: they share the flush of its directory
LOCK_TRY_SECONDS = 0.02  # in a thread
RETRY_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2)  # outside


class _MailboxSlots:
    __slots__ = ("slots", "users")

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(CONCURRENT_MAX)
        self.users = 0


class MailboxLimiter:
    """One line for each mailbox that has jobs."""

    def __init__(self) -> None:
        self._mailboxes: dict[str, _MailboxSlots] = {}

    async def run(self, owner: str, job: Callable[[float], Awaitable[T]]) -> T:
        """`job(seconds)` looks for the lock for so long in its thread; Locked says that it changed nothing. Raises
        Locked when the lock could not be had for LOCK_SECONDS from the turn on.
        """
        mailbox = self._mailboxes.setdefault(owner, _MailboxSlots())
        mailbox.users += 1
        try:
            async with mailbox.slots:
                clock = asyncio.get_running_loop().time
                deadline = clock() + LOCK_SECONDS
                tries = 0
                while True:
                    try:
                        return await job(LOCK_TRY_SECONDS)
                    except MailboxLocked:
                        if clock() >= deadline:
                            raise
                        await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
                        tries += 1
        finally:
            mailbox.users -= 1
            if not mailbox.users:
                del self._mailboxes[owner]
