"""What all sessions of a process share and may run short of: connections, and memory for content. Pure counting.

It never waits and never refuses by itself: it answers whether there is room, and the session says 421 or 452. Time is
given.
Next: `ingress/storeroom.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

RATED_SECONDS = 10.0
SLOW_RATE = 32 * 1024  # bytes a second; asked for only while memory is short


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


class Content:
    """One message's content on its way in, and how fast it comes. `cut` ends its session and gives its memory back."""

    __slots__ = ("_mark", "_mark_bytes", "client", "cut", "exempt", "held_bytes", "is_whole")

    def __init__(self, client: str, now: float, cut: Callable[[], None], *, exempt: bool) -> None:
        self.client = client
        self.exempt = exempt  # of the share each client has
        self.cut = cut
        self.held_bytes = 0
        self.is_whole = False  # what is whole is ours to hurry with, not the client's
        self._mark = now  # when it last had come on by a good piece
        self._mark_bytes = 0

    def grown(self, octets: int, now: float) -> None:
        self.held_bytes = octets
        if octets >= self._mark_bytes + SLOW_RATE * RATED_SECONDS:
            self._mark, self._mark_bytes = now, octets

    def is_slow(self, now: float) -> bool:
        return not self.is_whole and now - self._mark > RATED_SECONDS


class Meter:
    """Bytes of content in memory that nobody has taken responsibility for yet; of one client only so many. When all
    is taken, whose content comes slowly has to go, the largest first: otherwise a few clients that begin and do not end
    would keep out everybody else.
    """

    def __init__(self, limit_bytes: int, limit_per_client_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._limit_per_client_bytes = limit_per_client_bytes
        self._contents: set[Content] = set()
        self._by_client: Counter[str] = Counter()
        self.used_bytes = 0

    def has_room(self, client: str, octets: int, now: float, *, exempt: bool) -> bool:
        """Whether a message of so many octets could be held, after cutting who is slow if need be."""
        if not exempt and self._by_client[client] + octets > self._limit_per_client_bytes:
            return False
        return self._make_room(octets, now)

    def begin(self, content: Content) -> None:
        self._contents.add(content)

    def hold(self, content: Content, octets: int, now: float) -> bool:
        """Note that the content has grown, or shrunk, to `octets`; or leave all as it is and say no."""
        more = octets - content.held_bytes
        if more > 0 and not (
            (content.exempt or self._by_client[content.client] + more <= self._limit_per_client_bytes)
            and self._make_room(more, now, content)
        ):
            return False
        content.grown(octets, now)
        self.used_bytes += more
        self._by_client[content.client] += more
        return True

    def end(self, content: Content) -> None:
        """The content is ours in the log, or gone. Idempotent."""
        self._contents.discard(content)
        self.used_bytes -= content.held_bytes
        self._by_client[content.client] -= content.held_bytes
        content.held_bytes = 0
        if not self._by_client[content.client]:
            del self._by_client[content.client]

    def _make_room(self, octets: int, now: float, but: Content | None = None) -> bool:
        while self.used_bytes + octets > self._limit_bytes:
            slow = [one for one in self._contents if one is not but and one.is_slow(now)]
            largest = max(slow, key=lambda one: one.held_bytes, default=None)
            if largest is None or not largest.held_bytes:
                return False
            largest.cut()
            self.end(largest)
        return True
