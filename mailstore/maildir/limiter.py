"""Concurrency limit per mailbox, in front of the thread pool.

A mailbox whose lock is held by a hung process or a slow disk would otherwise fill every thread with jobs
waiting for the lock and block all other mailboxes. A job therefore tries the lock briefly, releases its thread, and
tries again until LOCK_SECONDS have passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from mail.backoff import backoff
from mailstore.maildir.mailbox_lock import LOCK_SECONDS, MailboxLocked

T = TypeVar("T")

CONCURRENT_MAX = 4  # per mailbox; these jobs share the flush of its directory
LOCK_TRY_SECONDS = 0.02  # inside a thread
RETRY_SECONDS, RETRY_SECONDS_MAX = 0.01, 0.2  # between attempts, without a thread


class MailboxLimiter:
    """Runs at most CONCURRENT_MAX jobs per mailbox."""

    def __init__(self) -> None:
        self._semaphores: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # of mailboxes with jobs

    async def run(self, owner: str, job: Callable[[float], Awaitable[T]]) -> T:
        """Run `job(lock_seconds)` until it does not raise MailboxLocked. Raises MailboxLocked after LOCK_SECONDS,
        counted from the first attempt.
        """
        async with self._semaphores.setdefault(owner, asyncio.Semaphore(CONCURRENT_MAX)):
            clock = asyncio.get_running_loop().time
            deadline = clock() + LOCK_SECONDS
            pauses = backoff(RETRY_SECONDS, RETRY_SECONDS_MAX)
            while True:
                try:
                    return await job(LOCK_TRY_SECONDS)
                except MailboxLocked:
                    if clock() >= deadline:
                        raise
                    await asyncio.sleep(next(pauses))
