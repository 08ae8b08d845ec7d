"""Generator of queue ids: ULIDs that increase strictly within the process. Thread-safe; reads the clock and
os.urandom. The format of an id is in `mail/message.py`.
"""

from __future__ import annotations

import os
import threading
import time

from mail.message import QueueId, make_queue_id


class _MonotonicGenerator:
    """The monotonic generator of the ULID specification: within a millisecond, the random part is incremented."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_ms = 0
        self._random = 0

    def make(self, now_ms: int) -> QueueId:
        with self._lock:
            if now_ms > self._last_ms:
                self._last_ms = now_ms
                self._random = int.from_bytes(os.urandom(10)) >> 1  # the upper half of the range is for increments
            else:
                self._random += 1
            return make_queue_id(self._last_ms, self._random)


_generator = _MonotonicGenerator()


def new_queue_id() -> QueueId:
    """A new queue id with the current time."""
    return _generator.make(time.time_ns() // 1_000_000)
