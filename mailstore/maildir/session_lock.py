"""Exclusive lock of a POP3 session on a mailbox, across processes (RFC 1939 section 4).

A flock on its own file, `eilpost-session`, so that deliveries (`eilpost-lock`) and Dovecot do not wait for sessions.
The kernel releases it when the process dies, even by kill -9. It holds one descriptor and no thread.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from mail.regular_file import open_regular

FILE = "eilpost-session"


class SessionLock:
    """Lock of one session. After `release` it is free, even when an `acquire` is still running in a thread."""

    def __init__(self, mailbox: Path) -> None:
        self._path = mailbox / FILE
        self._mutex = threading.Lock()
        self._descriptor: int | None = None
        self._released = False

    def acquire(self) -> bool:
        """Try to acquire the lock without waiting. Raises OSError."""
        descriptor = open_regular(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        with self._mutex:
            if not self._released:
                self._descriptor = descriptor
                return True
        os.close(descriptor)  # released before it was acquired
        return False

    def release(self) -> None:
        """Release the lock permanently."""
        with self._mutex:
            self._released = True
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
