"""Concurrency limit by count and by bytes, first come, first served. A request larger than the limit runs alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Limiter:
    def __init__(self, count: int, size_bytes: int) -> None:
        self._count = count
        self._bytes = size_bytes
        self._count_in_use = 0
        self._bytes_in_use = 0
        self._queue = asyncio.Lock()  # fair: held by the first request that waits
        self._released = asyncio.Event()

    @asynccontextmanager
    async def acquire(self, size_bytes: int) -> AsyncIterator[None]:
        """Count one and `size_bytes`; waits until both are within the limits."""
        async with self._queue:
            while not self._fits(size_bytes):
                self._released.clear()
                await self._released.wait()
            self._count_in_use += 1
            self._bytes_in_use += size_bytes
        try:
            yield
        finally:
            self._count_in_use -= 1
            self._bytes_in_use -= size_bytes
            self._released.set()

    def _fits(self, size_bytes: int) -> bool:
        return self._count_in_use == 0 or (
            self._count_in_use < self._count and self._bytes_in_use + size_bytes <= self._bytes
        )
