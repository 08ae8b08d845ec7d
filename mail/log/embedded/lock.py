"""Exclusive lock on a data directory: an flock on a file that contains the owner's process id.

The kernel releases it when the process ends.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from mail.log import LogUnusable


class DirectoryLock:
    def __init__(self, path: Path) -> None:
        """Take the lock for the database at `path`. Raises LogUnusable."""
        name = path.with_name(path.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LogUnusable(
                f"the log's directory {path.parent} cannot be used: {error.strerror}: check log.url and its permissions"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(self._file, 20).decode("ascii", "replace").strip()
            os.close(self._file)
            raise LogUnusable(
                f"another eilpost process ({owner or 'unknown'}) uses the directory {path.parent}: stop it first,"
                " or set log.url to another place"
            ) from None
        self.had_owner = os.fstat(self._file).st_size > 0  # another process used this directory before
        with suppress(OSError):  # the process id is informational, and a full disk is reported by the database
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Idempotent. The file stays, because removing it would race with the next owner."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
