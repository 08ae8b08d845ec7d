"""Concurrency limit by count and by bytes, first come, first served. A request larger than the limit runs alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Limiter:
    def __init__(self, count: int, size_bytes: int) -> None:
        self._count = count
        self._bytes = size_bytes
        self._count_in_use = 0
        self._bytes_in_use = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def acquire(self, size_bytes: int) -> AsyncIterator[None]:
        """Hold one slot and `size_bytes`; waits until both are free."""
        if self._waiters or not self._fits(size_bytes):
            await self._wait_for_turn(size_bytes)
        else:
            self._take(size_bytes)
        try:
            yield
        finally:
            self._release(size_bytes)

    async def _wait_for_turn(self, size_bytes: int) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((size_bytes, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # it has already acquired
                self._release(size_bytes)
            else:  # it may have blocked later waiters
                self._wake_waiters()
            raise

    def _fits(self, size_bytes: int) -> bool:
        return self._count_in_use == 0 or (
            self._count_in_use < self._count and self._bytes_in_use + size_bytes <= self._bytes
        )

    def _take(self, size_bytes: int) -> None:
        self._count_in_use += 1
        self._bytes_in_use += size_bytes

    def _release(self, size_bytes: int) -> None:
        self._count_in_use -= 1
        self._bytes_in_use -= size_bytes
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        while self._waiters:
            size_bytes, waiter = self._waiters[0]
            if not waiter.done():
                if not self._fits(size_bytes):
                    return
                self._take(size_bytes)
                waiter.set_result(None)
            self._waiters.popleft()
