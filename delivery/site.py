"""Pool state of one site: its connections, and the deliveries that wait for one."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from delivery.connection import Connection
from delivery.site_concurrency import SiteConcurrency


@dataclass(slots=True, eq=False)
class Site:
    """One site. `connections`: all open ones; `idle`: the unused ones, most recently used last."""

    name: str
    concurrency: SiteConcurrency
    connections: set[Connection] = field(default_factory=set)
    opening: int = 0
    idle: list[Connection] = field(default_factory=list)
    waiters: deque[asyncio.Future[Connection | None]] = field(default_factory=deque)
    last_used: float = 0.0
    last_success: float = float("-inf")

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
