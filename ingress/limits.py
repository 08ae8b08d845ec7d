"""What all sessions of a process share and may run short of: connections, and memory for content. Pure counting.

It never waits and never refuses by itself: it answers whether there is room, and the session says 421 or 452. Time is
given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

RATE_INTERVAL_SECONDS = 10.0
MIN_BYTES_PER_SECOND = 32 * 1024  # bytes a second; asked for only while memory is short


class ConnectionLimiter:
    """Open connections, in total and by client address."""

    def __init__(self, limit: int, limit_per_client: int) -> None:
        self._limit = limit
        self._limit_per_client = limit_per_client
        self._by_client: Counter[str] = Counter()
        self.total = 0

    def acquire(self, ip: str, *, exempt: bool) -> bool:
        """Count one in, unless that is too many. `exempt` clients have no limit of their own."""
        if self.total >= self._limit:
            return False
        if not exempt and self._by_client[ip] >= self._limit_per_client:
            return False
        self.total += 1
        self._by_client[ip] += 1
        return True

    def release(self, ip: str) -> None:
        self.total -= 1
        remaining = self._by_client[ip] - 1
        if remaining:
            self._by_client[ip] = remaining
        else:
            del self._by_client[ip]


class IncomingData:
    """One message's content on its way in, and how fast it comes. `cut` ends its session and gives its memory back."""

    __slots__ = ("_progress_at", "_progress_bytes", "abort", "client", "exempt", "held_bytes", "is_complete")

    def __init__(self, client: str, now: float, abort: Callable[[], None], *, exempt: bool) -> None:
        self.client = client
        self.exempt = exempt  # of the share each client has
        self.abort = abort
        self.held_bytes = 0
        self.is_complete = False  # what is whole is ours to hurry with, not the client's
        self._progress_at = now  # when it last had come on by a good piece
        self._progress_bytes = 0

    def update(self, octets: int, now: float) -> None:
        self.held_bytes = octets
        if octets >= self._progress_bytes + MIN_BYTES_PER_SECOND * RATE_INTERVAL_SECONDS:
            self._progress_at, self._progress_bytes = now, octets

    def is_slow(self, now: float) -> bool:
        return not self.is_complete and now - self._progress_at > RATE_INTERVAL_SECONDS


class MemoryBudget:
    """Bytes of content in memory that nobody has taken responsibility for yet; of one client only so many. When all
    is taken, whose content comes slowly has to go, the largest first: otherwise a few clients that begin and do not end
    would keep out everybody else.
    """

    def __init__(self, limit_bytes: int, limit_per_client_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._limit_per_client_bytes = limit_per_client_bytes
        self._incoming: set[IncomingData] = set()
        self._by_client: Counter[str] = Counter()
        self.used_bytes = 0

    def has_capacity(self, client: str, octets: int, now: float, *, exempt: bool) -> bool:
        """Whether a message of so many octets could be held, after cutting who is slow if need be."""
        if not exempt and self._by_client[client] + octets > self._limit_per_client_bytes:
            return False
        return self._reclaim(octets, now)

    def add(self, data: IncomingData) -> None:
        self._incoming.add(data)

    def resize(self, data: IncomingData, octets: int, now: float) -> bool:
        """Note that the content has grown, or shrunk, to `octets`; or leave all as it is and say no."""
        growth = octets - data.held_bytes
        if growth > 0 and not (
            (data.exempt or self._by_client[data.client] + growth <= self._limit_per_client_bytes)
            and self._reclaim(growth, now, data)
        ):
            return False
        data.update(octets, now)
        self.used_bytes += growth
        self._by_client[data.client] += growth
        return True

    def remove(self, data: IncomingData) -> None:
        """The content is ours in the log, or gone. Idempotent."""
        self._incoming.discard(data)
        self.used_bytes -= data.held_bytes
        self._by_client[data.client] -= data.held_bytes
        data.held_bytes = 0
        if not self._by_client[data.client]:
            del self._by_client[data.client]

    def _reclaim(self, octets: int, now: float, excluded: IncomingData | None = None) -> bool:
        while self.used_bytes + octets > self._limit_bytes:
            slow = [one for one in self._incoming if one is not excluded and one.is_slow(now)]
            largest = max(slow, key=lambda one: one.held_bytes, default=None)
            if largest is None or not largest.held_bytes:
                return False
            largest.abort()
            self.remove(largest)
        return True
