"""Mailbox lock and the cache of per-mailbox state of this process.

A lock in memory serialises threads, a flock on `eilpost-lock` serialises processes. The cache is bounded, and an entry
may be evicted at any time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mail.regular_file import open_regular
from mailstore.maildir.delivery_journal import DeliveryJournal, boot_id
from mailstore.maildir.flush import SharedFlush
from mailstore.maildir.names import owner_directory

LOCK_SECONDS = 10.0  # then a delivery is deferred, and an expunge fails
MAILBOXES_MAX = 1024
IDS_MAX = 100_000  # delivery ids in memory, all mailboxes together (about 12 MB)
CHECK_EVERY = 256  # calls between two checks of IDS_MAX


class MailboxLocked(TimeoutError):
    """The mailbox lock is held by another thread or process; nothing was changed."""


@dataclass(slots=True)
class Mailbox:
    """Cached state of one mailbox. `used_bytes` was measured at `used_at`; None when unknown."""

    path: Path
    journal: DeliveryJournal
    flush_new: SharedFlush
    lock: threading.Lock = field(default_factory=threading.Lock)
    used_bytes: int | None = None
    used_at: float = 0.0
    tmp_swept: bool = False

    @contextmanager
    def locked(self, seconds: float) -> Iterator[None]:
        """Hold the lock among threads and processes of eilpost. Raises MailboxLocked after `seconds`, and OSError."""
        deadline = time.monotonic() + seconds
        path = self.path / "eilpost-lock"
        timed_out = MailboxLocked(errno.EAGAIN, "mailbox lock not released in time", str(path))
        if not self.lock.acquire(timeout=seconds):
            raise timed_out
        try:
            descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT)
            try:
                while True:
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() > deadline:
                            raise timed_out from None
                        time.sleep(0.002)
                yield
            finally:
                os.close(descriptor)  # releases the lock
        finally:
            self.lock.release()


class MailboxCache:
    """LRU cache of mailboxes."""

    def __init__(self, root: Path, retention_seconds: float) -> None:
        self._root = root
        self._retention_seconds = retention_seconds
        self._boot = boot_id()
        self._calls = 0
        self._lock = threading.Lock()
        self._mailboxes: OrderedDict[str, Mailbox] = OrderedDict()

    def __len__(self) -> int:
        return len(self._mailboxes)

    @property
    def ids(self) -> int:
        """Number of delivery ids in memory."""
        return sum(mailbox.journal.size for mailbox in self._mailboxes.values())

    def get(self, owner: str) -> Mailbox:
        with self._lock:
            mailbox = self._mailboxes.get(owner)
            if mailbox is None:
                path = self._root / owner_directory(owner)
                journal = DeliveryJournal(path, self._boot, self._retention_seconds)
                mailbox = self._mailboxes[owner] = Mailbox(path, journal, SharedFlush(path / "new"))
            self._mailboxes.move_to_end(owner)
            self._calls += 1
            if len(self._mailboxes) > MAILBOXES_MAX or self._calls % CHECK_EVERY == 0:
                self._evict()
            return mailbox

    def _evict(self) -> None:
        """Evict the least recently used. Evicting one in use is safe: the file lock still serialises both copies."""
        ids = self.ids
        while len(self._mailboxes) > MAILBOXES_MAX or (len(self._mailboxes) > 1 and ids > IDS_MAX):
            _owner, mailbox = self._mailboxes.popitem(last=False)
            ids -= mailbox.journal.size
