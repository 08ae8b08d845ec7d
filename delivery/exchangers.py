"""State of each exchanger in a process: back-off after failures, and the use of PIPELINING. No I/O.

An exchanger is one host and port, of an MX record or of a relay; sites that share it share its state. An exchanger in
back-off is tried after all others.
"""

from __future__ import annotations

from enum import Enum, auto

# New connections lost in a row, without a transaction between them, after which an exchanger is backed off.
CONSECUTIVE_FAILURES_MAX = 3
_BACKOFF_FACTOR_MAX = 16  # the back-off doubles with each failure up to this multiple
PROBE_SECONDS = 330.0  # to connect and to wait for the greeting
EXCHANGERS_MAX = 10_000  # beyond it the least recently used one is dropped


class Pipelining(Enum):
    """Whether an exchanger that offers PIPELINING gets pipelined commands (RFC 2920)."""

    USED = auto()
    NOT_USED = auto()  # it did not reply to them in time
    USED_ANYWAY = auto()  # nor to single commands


class Exchanger:
    """One exchanger. `now_seconds`: a monotonic clock. `connections`: open ones; counted by the pool."""

    __slots__ = (
        "_backoff_factor",
        "_backoff_reason",
        "_backoff_seconds",
        "_backoff_until",
        "_consecutive_failures",
        "_is_probed",
        "connections",
        "host",
        "pipelining",
    )

    def __init__(self, host: str, backoff_seconds: float) -> None:
        self.host = host
        self.connections = 0
        self.pipelining = Pipelining.USED
        self._backoff_seconds = backoff_seconds
        self._backoff_until = float("-inf")
        self._backoff_reason = ""
        self._backoff_factor = 1
        self._is_probed = False
        self._consecutive_failures = 0

    def on_transaction(self) -> None:
        """It answered a transaction and may be tried in its order again."""
        self._consecutive_failures = 0
        self._backoff_factor = 1
        self._backoff_until = float("-inf")
        self._is_probed = False

    def on_tried(self, now_seconds: float) -> None:
        """A delivery tries it. After a back-off it is the only one, for as long as a silent server keeps it."""
        if self._backoff_factor > 1 and now_seconds >= self._backoff_until:
            self._is_probed = True
            self._backoff_until = now_seconds + PROBE_SECONDS

    def on_stalled(self, *, is_pipelined: bool) -> None:
        """It did not reply to a command of the envelope in time. Some servers, and firewalls before them, read only one
        command of a packet.
        """
        if is_pipelined and self.pipelining is Pipelining.USED:
            self.pipelining = Pipelining.NOT_USED
        elif not is_pipelined and self.pipelining is Pipelining.NOT_USED:
            self.pipelining = Pipelining.USED_ANYWAY

    def on_first_transaction_failed(self, reason: str, now_seconds: float) -> None:
        """A new connection was lost or timed out in its first transaction."""
        self._consecutive_failures += 1
        if self._consecutive_failures >= CONSECUTIVE_FAILURES_MAX:
            self.back_off(reason, now_seconds)

    def back_off(self, reason: str, now_seconds: float) -> None:
        """It is unreachable, or refuses what another exchanger of the same attempt accepted."""
        self._consecutive_failures = 0
        self._backoff_reason = reason
        if self._is_probed or now_seconds >= self._backoff_until:  # else it is the same failure, of another delivery
            self._is_probed = False
            self._backoff_until = now_seconds + self._backoff_seconds * self._backoff_factor
            self._backoff_factor = min(2 * self._backoff_factor, _BACKOFF_FACTOR_MAX)

    def backoff_reason(self, now_seconds: float) -> str | None:
        """Why it is tried last now, or None."""
        return self._backoff_reason if now_seconds < self._backoff_until else None


class Exchangers:
    """The exchangers of a process."""

    def __init__(self, backoff_seconds: float) -> None:
        self._backoff_seconds = backoff_seconds
        self._exchangers: dict[tuple[str, int], Exchanger] = {}  # least recently used first

    def use(self, host: str, port: int) -> Exchanger:
        exchanger = self._exchangers.pop((host, port), None)
        if exchanger is None:
            exchanger = Exchanger(host, self._backoff_seconds)
            if len(self._exchangers) >= EXCHANGERS_MAX:
                del self._exchangers[next(iter(self._exchangers))]
        self._exchangers[host, port] = exchanger
        return exchanger

    def backoff_reason(self, host: str, port: int, now_seconds: float) -> str | None:
        """Why the exchanger is tried last now, or None."""
        exchanger = self._exchangers.get((host, port))
        return None if exchanger is None else exchanger.backoff_reason(now_seconds)
