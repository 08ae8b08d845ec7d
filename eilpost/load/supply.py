"""Supply of a source: new messages at a steady rate, and retries when they are due.

One session waits for the next due time and the others wait for its lock (an asyncio.Lock is fair). A source that is
behind its rate catches up at most one second of messages.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Iterator
from dataclasses import replace

from eilpost.load.workload import OutgoingMessage
from mail.tasks import is_set_within

_CATCH_UP_SECONDS = 1.0
_LEAST_WAIT_SECONDS = 0.001  # resolution of event loop timers


class Supply:
    def __init__(
        self, messages: Iterator[OutgoingMessage], *, per_second: float | None = None, waiting_max: int = 10_000
    ) -> None:
        """`per_second`: None for no limit. `waiting_max`: no new message is started while this many retries wait."""
        self._messages = messages
        self._interval = 1 / per_second if per_second else 0.0
        self._waiting_max = waiting_max
        self._due = 0.0  # of the next new message; 0 before the first
        self._waiting: list[tuple[float, int, OutgoingMessage]] = []  # a heap by due time
        self._order = 0
        self._unfinished = 0  # taken, and neither finished nor retried
        self._exhausted = self._stopped = False
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def is_sending_new(self) -> bool:
        """Whether new messages will follow."""
        return not self._exhausted and not self._stopped

    @property
    def unsent(self) -> int:
        """Messages started, without a final result."""
        return self._unfinished + len(self._waiting)

    def stop_new(self) -> None:
        """Start no new messages; those already started are retried until they have a final result."""
        self._exhausted = True
        self._changed.set()

    def stop(self) -> None:
        """Return no more messages."""
        self._stopped = True
        self._changed.set()

    async def take(self) -> OutgoingMessage | None:
        async with self._lock:
            while not self._stopped:
                now = time.monotonic()
                if self._waiting and self._waiting[0][0] <= now:
                    self._unfinished += 1
                    return heapq.heappop(self._waiting)[2]
                due = self._waiting[0][0] if self._waiting else float("inf")
                if not self._exhausted and len(self._waiting) < self._waiting_max:
                    if self._due <= now:
                        message = next(self._messages, None)
                        if message is not None:
                            self._due = max(self._due or now, now - _CATCH_UP_SECONDS) + self._interval
                            self._unfinished += 1
                            return message
                        self._exhausted = True
                    else:
                        due = min(due, self._due)
                if self._exhausted and not self._waiting and not self._unfinished:
                    return None
                self._changed.clear()
                is_timed = due < float("inf")
                await is_set_within(self._changed, max(due - now, _LEAST_WAIT_SECONDS) if is_timed else None)
            return None

    def finished(self) -> None:
        """A taken message has a final result."""
        self._unfinished -= 1
        if self._exhausted:
            self._changed.set()

    def retry(self, message: OutgoingMessage, seconds: float) -> None:
        """Send a taken message again after `seconds`."""
        self._unfinished -= 1
        self._order += 1
        retried = replace(message, attempts=message.attempts + 1)
        heapq.heappush(self._waiting, (time.monotonic() + seconds, self._order, retried))
        self._changed.set()

    def split(self) -> None:
        """A taken message became two, because its recipients got different replies."""
        self._unfinished += 1
