"""Concurrency limit of one site: slow start of its connections, and back-off from an unreachable site. No I/O.

The connection limit starts small, grows by one with each answered transaction (so it doubles per round, as in TCP slow
start) and halves on overload. An unreachable site is not tried for a while.
"""

from __future__ import annotations

START_CONNECTIONS = 4
# New connections lost in a row, without a transaction between them, after which a site is backed off.
CONSECUTIVE_FAILURES_MAX = 3


class SiteConcurrency:
    """One site's connection limit and back-off. `now_seconds`: a monotonic clock."""

    def __init__(self, maximum: int, backoff_seconds: float) -> None:
        self._maximum = maximum
        self._backoff_seconds = backoff_seconds
        self._backoff_until = 0.0
        self._backoff_reason = ""
        self._consecutive_failures = 0
        self.connection_limit = min(START_CONNECTIONS, maximum)

    def on_success(self) -> None:
        """The site answered a transaction, with any outcome."""
        self._consecutive_failures = 0
        if self.connection_limit < self._maximum:
            self.connection_limit += 1

    def on_overload(self, open_connections: int) -> None:
        """The site closed or refused a connection while `open_connections` others are open."""
        self.connection_limit = max(1, min(self.connection_limit // 2, open_connections))

    def on_first_transaction_failed(self, reason: str, now_seconds: float) -> None:
        """A new connection was lost or timed out in its first transaction."""
        self._consecutive_failures += 1
        if self._consecutive_failures >= CONSECUTIVE_FAILURES_MAX:
            self.on_unreachable(reason, now_seconds)

    def on_unreachable(self, reason: str, now_seconds: float) -> None:
        """No host of the site could be reached, and no connection is open."""
        self.connection_limit = min(START_CONNECTIONS, self._maximum)
        self._consecutive_failures = 0
        self._backoff_reason = reason
        self._backoff_until = now_seconds + self._backoff_seconds

    def backoff_reason(self, now_seconds: float) -> str | None:
        """Why the site is not tried now, or None."""
        return self._backoff_reason if now_seconds < self._backoff_until else None
