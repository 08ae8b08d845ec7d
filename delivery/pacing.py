"""How hard one site may be pressed: slow start of concurrency, and memory of a dead destination. Pure; time is given.

In charge of two numbers, how many connections a site may have now and until when it is left alone. Never opens
anything. The window starts small, grows by one with every transaction the site took (so it doubles per round, as TCP's
slow start), halves when the site pushes back, and a site that could not be reached at all is left alone for a while.
`now_seconds` is any clock that only rises.
"""

from __future__ import annotations

START_CONNECTIONS = 4
# Fresh connections lost in a row, without one transaction between them, after which a site counts as dead.
CONSECUTIVE_FAILURES_MAX = 3


class Pacing:
    """One site's window and dead time."""

    __slots__ = (
        "_consecutive_failures",
        "_dead_reason",
        "_dead_seconds",
        "_dead_until",
        "_maximum",
        "connection_limit",
    )

    def __init__(self, maximum: int, dead_seconds: float) -> None:
        self._maximum = maximum
        self._dead_seconds = dead_seconds
        self._dead_until = 0.0
        self._dead_reason = ""
        self._consecutive_failures = 0
        self.connection_limit = min(START_CONNECTIONS, maximum)

    def on_success(self) -> None:
        """The site answered a transaction, whatever it said about the recipients."""
        self._consecutive_failures = 0
        if self.connection_limit < self._maximum:
            self.connection_limit += 1

    def on_overload(self, open_connections: int) -> None:
        """The site closed, or refused one more connection, while `open_connections` others live: it has enough."""
        self.connection_limit = max(1, min(self.connection_limit // 2, open_connections))

    def on_first_transaction_failed(self, reason: str, now_seconds: float) -> None:
        """A fresh connection was lost, or silent for too long, in its first transaction."""
        self._consecutive_failures += 1
        if self._consecutive_failures >= CONSECUTIVE_FAILURES_MAX:
            self.on_unreachable(reason, now_seconds)

    def on_unreachable(self, reason: str, now_seconds: float) -> None:
        """No host of the site could be spoken to, and no connection is left."""
        self.connection_limit = min(START_CONNECTIONS, self._maximum)
        self._consecutive_failures = 0
        self._dead_reason = reason
        self._dead_until = now_seconds + self._dead_seconds

    def dead_reason(self, now_seconds: float) -> str | None:
        """Why the site is left alone now, or None."""
        return self._dead_reason if now_seconds < self._dead_until else None
