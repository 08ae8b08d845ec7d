"""Group fsync of directories: a file name is durable only after its directory was flushed."""

from __future__ import annotations

import threading
from pathlib import Path

from mail.fsync import fsync_directory


class SharedFlush:
    """Group fsync of one directory: callers that arrive during one fsync share the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._requested = 0
        self._completed = 0
        self._count_lock = threading.Lock()
        self._flush_lock = threading.Lock()

    def flush(self) -> None:
        with self._count_lock:
            self._requested += 1
            ticket = self._requested
        with self._flush_lock:
            if self._completed >= ticket:
                return  # a flush that began after this call has completed
            requested = self._requested
            fsync_directory(self._path)
            self._completed = requested
