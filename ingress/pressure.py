"""What all sessions of a process share and may run short of: connections, and memory for content. Pure counting.

It never waits and never refuses by itself: it answers whether there is room, and the session says 421 or 452.
Next: `ingress/storeroom.py`.
"""

from __future__ import annotations

from collections import Counter


class Crowd:
    """Open connections, in total and by client address."""

    def __init__(self, limit: int, limit_per_client: int) -> None:
        self._limit = limit
        self._limit_per_client = limit_per_client
        self._by_client: Counter[str] = Counter()
        self.total = 0

    def enter(self, ip: str, *, exempt: bool) -> bool:
        """Count one in, unless that is too many. `exempt` clients have no limit of their own."""
        if self.total >= self._limit:
            return False
        if not exempt and self._by_client[ip] >= self._limit_per_client:
            return False
        self.total += 1
        self._by_client[ip] += 1
        return True

    def leave(self, ip: str) -> None:
        self.total -= 1
        left = self._by_client[ip] - 1
        if left:
            self._by_client[ip] = left
        else:
            del self._by_client[ip]


class Meter:
    """Bytes of content in memory that nobody has taken responsibility for yet."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.used_bytes = 0

    def has_room(self, octets: int = 1) -> bool:
        return self.used_bytes + octets <= self._limit_bytes

    def take(self, octets: int) -> bool:
        """Reserve, or leave all as it is and say no."""
        if self.used_bytes + octets > self._limit_bytes:
            return False
        self.used_bytes += octets
        return True

    def give(self, octets: int) -> None:
        self.used_bytes -= octets
