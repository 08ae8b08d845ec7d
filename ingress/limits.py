"""Connection limit and memory budget shared by all sessions of a process. No I/O of its own: time is an argument.

They report whether there is capacity; the session sends the 421 or 452.
"""

from __future__ import annotations

from collections.abc import Callable

from mail.client_counts import ClientCounts

RATE_INTERVAL_SECONDS = 10.0
RECLAIM_BELOW_BYTES_PER_SECOND = 32 * 1024  # required only while the memory budget is used up


class ConnectionLimiter:
    """Number of open connections, in total and per client. Clients that are not exempt cannot use the `reserved` ones.

    They are under stress, as Postfix's smtpd when all its processes are in use, from the time at which they have nine
    tenths of their connections until they have fewer than half of them.
    """

    def __init__(self, limit: int, limit_per_client: int, reserved: int = 0) -> None:
        self._limit = limit
        self._unreserved = limit - reserved
        self._stress_from = -(-self._unreserved * 9 // 10)
        self._by_client = ClientCounts(limit_per_client)
        self._unexempt = 0
        self.total = 0
        self.is_under_stress = False

    def acquire(self, ip: str, *, exempt: bool) -> bool:
        """Count a connection and return True, or return False at a limit. `exempt`: no limit per client, and the
        reserved connections.
        """
        if self.total >= self._limit:
            return False
        if not exempt:
            if self._unexempt >= self._unreserved or not self._by_client.has_room(ip):
                return False
            self._by_client.add(ip)
            self._unexempt += 1
            self.is_under_stress = self.is_under_stress or self._unexempt >= self._stress_from
        self.total += 1
        return True

    def release(self, ip: str, *, exempt: bool = False) -> None:
        self.total -= 1
        if not exempt:
            self._by_client.add(ip, -1)
            self._unexempt -= 1
            self.is_under_stress = self.is_under_stress and self._unexempt * 2 >= self._unreserved


class IncomingData:
    """Message data being received, and its rate. `abort` ends the session and releases the memory."""

    def __init__(self, client: str, now: float, abort: Callable[[], None], *, exempt: bool) -> None:
        self.client = client
        self.exempt = exempt  # from the per-client limit
        self.abort = abort
        self.held_bytes = 0
        self.started_at = now
        self.is_over_budget = False
        self.is_complete = False  # the append is in progress; the client cannot speed it up
        self._progress_at = now  # when the data last reached the required rate
        self._progress_bytes = 0

    def update(self, size_bytes: int, now: float) -> None:
        self.held_bytes = size_bytes
        if size_bytes >= self._progress_bytes + RECLAIM_BELOW_BYTES_PER_SECOND * RATE_INTERVAL_SECONDS:
            self._progress_at, self._progress_bytes = now, size_bytes

    def is_slow(self, now: float) -> bool:
        return not self.is_complete and now - self._progress_at > RATE_INTERVAL_SECONDS


class MemoryBudget:
    """Limit on message data in memory that is not accepted yet (`ingress.max_in_flight_bytes`), in total and per
    client. When it is used up, slow data is aborted, the largest first: otherwise a few clients that never finish a
    message would block all others.
    """

    def __init__(self, limit_bytes: int, limit_per_client_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._incoming: set[IncomingData] = set()
        self._by_client = ClientCounts(limit_per_client_bytes)
        self.used_bytes = 0

    def has_capacity(self, client: str, added_bytes: int, now: float, *, exempt: bool) -> bool:
        """Whether `added_bytes` more fit, after aborting slow data if necessary."""
        if not exempt and not self._by_client.has_room(client, added_bytes):
            return False
        return self._reclaim(added_bytes, now)

    def add(self, data: IncomingData) -> None:
        self._incoming.add(data)

    def resize(self, data: IncomingData, size_bytes: int, now: float) -> bool:
        """Set the size of `data` to `size_bytes`. Return False, and change nothing, when that exceeds a limit."""
        growth = size_bytes - data.held_bytes
        if growth > 0 and not (
            (data.exempt or self._by_client.has_room(data.client, growth)) and self._reclaim(growth, now, data)
        ):
            return False
        data.update(size_bytes, now)
        self.used_bytes += growth
        self._by_client.add(data.client, growth)
        return True

    def remove(self, data: IncomingData) -> None:
        """Release the memory of `data`. Idempotent."""
        self._incoming.discard(data)
        self.used_bytes -= data.held_bytes
        self._by_client.add(data.client, -data.held_bytes)
        data.held_bytes = 0

    def _reclaim(self, added_bytes: int, now: float, excluded: IncomingData | None = None) -> bool:
        while self.used_bytes + added_bytes > self._limit_bytes:
            slow = [data for data in self._incoming if data is not excluded and data.is_slow(now)]
            largest = max(slow, key=lambda data: data.held_bytes, default=None)
            if largest is None or not largest.held_bytes:
                return False
            largest.abort()
            self.remove(largest)
        return True
