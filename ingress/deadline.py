"""Time-out of a session: one timer checks the deadline when it fires, so that moving the deadline is cheap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[], None]) -> None:
        self._loop = loop
        self._expire = expire
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def set(self, seconds: float) -> None:
        """Call `expire` after `seconds`, unless it is set again before."""
        self._at = self._loop.time() + seconds
        if self._timer is None or self._timer_due > self._at:
            self._arm()

    def shorten(self, seconds: float) -> None:
        """Set it unless `expire` is due before, or it is not set."""
        if self._timer is not None and self._loop.time() + seconds < self._at:
            self.set(seconds)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self.cancel()
        self._timer_due = self._at
        self._timer = self._loop.call_at(self._at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._at - self._loop.time() > 0.001:
            self._arm()
        else:
            self._expire()
