"""Clock of the event loop that a test sets forward, so that time-outs expire without waiting."""

from __future__ import annotations

import asyncio

import pytest


class Clock:
    """The running loop's clock until the test ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        real_time = loop.time
        self._ahead_seconds = 0.0
        monkeypatch.setattr(loop, "time", lambda: real_time() + self._ahead_seconds)

    def advance(self, seconds: float) -> None:
        """Timers of that time become due at once."""
        self._ahead_seconds += seconds
