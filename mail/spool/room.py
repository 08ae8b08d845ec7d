"""A bound on what is under way: so many at once, and so many bytes. First come, first served.

What is larger than all the bytes there are goes alone. Next: `mail/spool/objects.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    def __init__(self, count: int, size_bytes: int) -> None:
        self._count = count
        self._bytes = size_bytes
        self._taken = 0
        self._taken_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, size_bytes: int) -> AsyncIterator[None]:
        """Wait until there is room for one more of this size, and hold it."""
        if self._waiting or not self._fits(size_bytes):
            await self._wait(size_bytes)
        else:
            self._enter(size_bytes)
        try:
            yield
        finally:
            self._leave(size_bytes)

    async def _wait(self, size_bytes: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had been let in
                self._leave(size_bytes)
            else:  # it may have held up those behind it
                self._let_in()
            raise

    def _fits(self, size_bytes: int) -> bool:
        return self._taken == 0 or (self._taken < self._count and self._taken_bytes + size_bytes <= self._bytes)

    def _enter(self, size_bytes: int) -> None:
        self._taken += 1
        self._taken_bytes += size_bytes

    def _leave(self, size_bytes: int) -> None:
        self._taken -= 1
        self._taken_bytes -= size_bytes
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            size_bytes, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(size_bytes):
                    return
                self._enter(size_bytes)
                turn.set_result(None)
            self._waiting.popleft()
