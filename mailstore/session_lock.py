"""The exclusive lock of a session that has a mailbox open (RFC 1939 section 4): one at a time, in whatever process.

A flock on a file of its own, `eilpost-session`, so that deliveries (`eilpost-lock`) and Dovecot need not wait for a
session. The kernel gives it back when the process dies, by kill -9 too. It costs a descriptor for as long as it is
held, never a thread.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from mail.regular_file import open_regular

FILE = "eilpost-session"


class SessionLock:
    """The lock of one session, free after `release` even when that overtakes a `take` that is still on its way."""

    def __init__(self, mailbox: Path) -> None:
        self._path = mailbox / FILE
        self._mutex = threading.Lock()
        self._descriptor: int | None = None
        self._released = False

    def acquire(self) -> bool:
        """Whether it could be had; never waits for another session. Raises OSError."""
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
        os.close(descriptor)  # who asked has gone meanwhile
        return False

    def release(self) -> None:
        """Give it back for good."""
        with self._mutex:
            self._released = True
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
