"""Thread that writes log lines, so that a slow or stuck reader of the log does not block the event loop.

Lines that cannot be queued or written are dropped and counted; a later line reports their number.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

QUEUED_BYTES_MAX = 4 * 1024 * 1024  # waiting lines; enough for some seconds at full load
# Lines that come meanwhile are one write. Without it every line wakes the thread: 0.04 ms of CPU more for each message.
_BATCH_SECONDS = 0.02


class RawStream(Protocol):
    """An unbuffered stream of bytes; `write` returns how many it took, None if it is non-blocking and full."""

    def write(self, data: memoryview, /) -> int | None: ...

    def fileno(self) -> int: ...


class LineWriter:
    """Writes lines to `out`. `format_dropped` makes the line for a number of dropped lines; `count_dropped` is called
    with the number of lines that were dropped now.
    """

    def __init__(
        self, out: RawStream, format_dropped: Callable[[int], bytes], count_dropped: Callable[[int], None]
    ) -> None:
        self._out = out
        self._format_dropped = format_dropped
        self._count_dropped = count_dropped
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0  # of lines that are not written yet
        self._dropped = 0  # since the last line that said so
        self._is_line_open = False  # the last write ended within a line
        self._is_closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log-lines", daemon=True).start()

    def write(self, line: bytes) -> None:
        """Queue a line, without its end; neither blocks nor raises."""
        with self._changed:
            if self._queued_bytes + len(line) >= QUEUED_BYTES_MAX:
                self._drop(1)
                return
            self._lines.append(line)
            self._queued_bytes += len(line) + 1
            if len(self._lines) == 1:
                self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> None:
        """Wait until the queued lines are written, at most for this time."""
        end = time.monotonic() + timeout_seconds
        with self._changed:
            while self._queued_bytes and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def close(self) -> None:
        """End the thread once the queued lines are written."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _drop(self, count: int) -> None:
        self._dropped += count
        self._count_dropped(count)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    if self._is_closed:
                        return
                    self._changed.wait()
            time.sleep(_BATCH_SECONDS)
            with self._changed:
                lines, dropped = list(self._lines), self._dropped
                self._lines.clear()
                self._dropped = 0
            if dropped:
                lines.append(self._format_dropped(dropped))
            written = self._write(b"".join(line + b"\n" for line in lines))
            with self._changed:
                if written < len(lines):
                    self._dropped += dropped
                    self._drop(len(lines) - written - bool(dropped))
                self._queued_bytes = sum(len(line) + 1 for line in self._lines)
                self._changed.notify_all()

    def _write(self, data: bytes) -> int:
        """Number of lines that were written. It blocks while the reader does not read."""
        rest = memoryview(b"\n" + data if self._is_line_open else data)
        while rest:
            try:
                count = self._out.write(rest)
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                if not isinstance(error, BlockingIOError):
                    return data.count(b"\n", 0, len(data) - len(rest))
                count = None
            if count is None:  # another process made the stream non-blocking
                select.select([], [self._out], [])
                continue
            if count:
                self._is_line_open = rest[count - 1] != 0x0A
            rest = rest[count:]
        return data.count(b"\n")
