"""Pool state of one site: its connections, and the deliveries that wait for one."""

from __future__ import annotations

import asyncio
from collections import deque

from delivery.connection import Connection
from delivery.pacing import Pacing


class Site:
    """One site. `connections`: all open ones; `idle`: the unused ones, most recently used last."""

    __slots__ = ("connections", "idle", "last_success", "last_used", "name", "opening", "pacing", "waiters")

    def __init__(self, name: str, pacing: Pacing) -> None:
        self.name = name
        self.pacing = pacing
        self.connections: set[Connection] = set()
        self.opening = 0
        self.idle: list[Connection] = []
        self.waiters: deque[asyncio.Future[Connection | None]] = deque()
        self.last_used = 0.0
        self.last_success = float("-inf")

    @property
    def count(self) -> int:
        return len(self.connections) + self.opening

    def wake_waiter(self, connection: Connection | None = None) -> bool:
        """Wake the longest waiter, with a connection or to check again. False if there is none."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False
