"""What this process remembers of mailboxes, and the lock of each. All of it may be forgotten at any time.

In charge of how much is remembered, and of taking turns: threads by a lock in memory, processes of eilpost by one on
the disk (`eilpost-lock`). Never of messages.
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
from mailstore.delivery_journal import DeliveryJournal, boot_id
from mailstore.flush import SharedFlush
from mailstore.names import owner_directory

LOCK_SECONDS = 10.0  # how long a job waits for a mailbox before its mail is deferred
MAILBOXES_MAX = 1024
IDS_MAX = 100_000  # delivery ids in memory, all mailboxes together (about 12 MB)
CHECK_EVERY = 256  # calls between two counts of those ids


class MailboxLocked(TimeoutError):
    """The mailbox lock is held by somebody else; nothing was changed."""


@dataclass(slots=True)
class Mailbox:
    """One mailbox. `used_bytes` is what it held at `used_at`, None when that is not known."""

    path: Path
    journal: DeliveryJournal
    flush_new: SharedFlush
    lock: threading.Lock = field(default_factory=threading.Lock)
    used_bytes: int | None = None
    used_at: float = 0.0
    tmp_swept: bool = False

    @contextmanager
    def locked(self, seconds: float) -> Iterator[None]:
        """The mailbox lock among threads and processes of eilpost. Raises Locked after `seconds`, and OSError."""
        deadline = time.monotonic() + seconds
        path = self.path / "eilpost-lock"
        if not self.lock.acquire(timeout=seconds):
            raise MailboxLocked(errno.EAGAIN, "the mailbox lock is held for too long", str(path))
        try:
            descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT)
            try:
                while True:
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() > deadline:
                            raise MailboxLocked(
                                errno.EAGAIN, "the mailbox lock is held for too long", str(path)
                            ) from None
                        time.sleep(0.002)
                yield
            finally:
                os.close(descriptor)  # gives the lock back
        finally:
            self.lock.release()


class MailboxCache:
    """The mailboxes used last."""

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
        """Delivery ids held in memory."""
        return sum(box.journal.size for box in self._mailboxes.values())

    def get(self, owner: str) -> Mailbox:
        with self._lock:
            mailbox = self._mailboxes.get(owner)
            if mailbox is None:
                path = self._root / owner_directory(owner)
                mailbox = Mailbox(
                    path, DeliveryJournal(path, self._boot, self._retention_seconds), SharedFlush(path / "new")
                )
                self._mailboxes[owner] = mailbox
            self._mailboxes.move_to_end(owner)
            self._calls += 1
            if len(self._mailboxes) > MAILBOXES_MAX or self._calls % CHECK_EVERY == 0:
                self._evict()
            return mailbox

    def _evict(self) -> None:
        """Let go of those longest unused. One in use is no harm: the lock on the disk orders the two."""
        ids = self.ids
        while len(self._mailboxes) > MAILBOXES_MAX or (len(self._mailboxes) > 1 and ids > IDS_MAX):
            _owner, mailbox = self._mailboxes.popitem(last=False)
            ids -= mailbox.journal.size
