"""Windows of the sites: connections per site, deliveries in flight per site, and back-off. No I/O.

A window counts connections. It starts small, grows by one with each prompt transaction (slow start) until its first
halving, then by one a round (AIMD); overload and each late transaction halve it, and twice its connections in flight
keep a site busy. A site that has not grown its window is *unproven*, with one connection until it has greeted, unless
it is *trusted*: a relay, which the senders do not choose.
"""

from __future__ import annotations

UNPROVEN_START = 2  # connections, and deliveries in flight
TRUSTED_START = 4
PROMPT_SECONDS = 60.0  # a transaction that ends within this time is prompt
RETENTION_SECONDS = 600.0  # a window that was not used for this time starts again
WINDOWS_MAX = 5000  # beyond it the least recently used one without connections is dropped


class SiteWindow:
    """One site's window and back-off. `now_seconds`: a monotonic clock."""

    def __init__(self, maximum: int, backoff_seconds: float, *, is_trusted: bool) -> None:
        self._maximum = maximum
        self._initial = min(TRUSTED_START if is_trusted else UNPROVEN_START, maximum)
        self._is_trusted = is_trusted
        self._has_greeted = is_trusted  # one connection at first to a site that may never greet
        self._size = self._initial  # may exceed the maximum by one, because growth proves a site
        self._threshold: float = float("inf")  # size from which growth is additive
        self._prompt_count = 0  # transactions since the last growth
        self._backoff_seconds = backoff_seconds
        self._backoff_until = 0.0
        self._backoff_reason = ""
        self.connections = 0  # open and opening ones; counted by the pool
        self.last_used = 0.0
        self.last_success = float("-inf")

    @property
    def connection_limit(self) -> int:
        return min(self._size, self._maximum) if self._has_greeted else 1

    @property
    def has_room(self) -> bool:
        """Whether a further connection may be opened."""
        return self.connections < self.connection_limit

    @property
    def delivery_limit(self) -> int:
        """Maximum deliveries in flight. Overload does not lower it below its initial value: they wait in the pool."""
        if self.is_unproven:
            return UNPROVEN_START if self._has_greeted else 1
        return 2 * max(self.connection_limit, self._initial)

    @property
    def is_unproven(self) -> bool:
        return self._size <= self._initial and not self._is_trusted

    def on_greeting(self) -> None:
        """A server of the site accepted a session."""
        self._has_greeted = True

    def on_transaction(self, seconds: float, now_seconds: float) -> None:
        """The site answered a transaction, with any outcome, after `seconds`."""
        self.last_success = now_seconds
        self._has_greeted = True
        if seconds > PROMPT_SECONDS:
            self._shrink(max(self._size // 2, min(self._size, self._initial)))
        elif self._size < max(self._maximum, self._initial + 1):
            self._prompt_count += 1
            if self._size < self._threshold or self._prompt_count >= self._size:
                self._size += 1
                self._prompt_count = 0

    def on_overload(self, open_connections: int) -> None:
        """The site closed or refused a connection while `open_connections` others are open."""
        self._shrink(max(1, min(self._size // 2, open_connections)))

    def _shrink(self, size: int) -> None:
        self._size = size
        self._threshold = max(size, self._initial + 1)
        self._prompt_count = 0

    def on_unreachable(self, reason: str, now_seconds: float) -> None:
        """No exchanger of the site can be used, and no connection is open."""
        self._size = self._initial
        self._has_greeted = self._is_trusted
        self._backoff_reason = reason
        self._backoff_until = now_seconds + self._backoff_seconds

    def backoff_reason(self, now_seconds: float) -> str | None:
        """Why the site is not tried now, or None."""
        return self._backoff_reason if now_seconds < self._backoff_until else None


class SiteWindows:
    """The windows of a process. The pool uses them, and the scheduler reads their limits."""

    def __init__(self, max_connections: int, backoff_seconds: float) -> None:
        self._max_connections = max_connections
        self._backoff_seconds = backoff_seconds
        self._windows: dict[str, SiteWindow] = {}  # least recently used first

    def use(self, site: str, now_seconds: float) -> SiteWindow:
        window = self._windows.pop(site, None)
        if window is None or (not window.connections and now_seconds - window.last_used > RETENTION_SECONDS):
            window = self._new(site)
            if len(self._windows) >= WINDOWS_MAX:
                unused = next((name for name, other in self._windows.items() if not other.connections), None)
                if unused is not None:
                    del self._windows[unused]
        window.last_used = now_seconds
        self._windows[site] = window
        return window

    def read(self, site: str) -> SiteWindow:
        """The site's window, or one like it; only to read its limits."""
        return self._windows.get(site) or self._new(site)

    def _new(self, site: str) -> SiteWindow:
        return SiteWindow(self._max_connections, self._backoff_seconds, is_trusted="://" in site)
