"""What this process remembers of mailboxes, and the lock of each. All of it may be forgotten at any time.

In charge of how much is remembered, and of taking turns: threads by a lock in memory, processes of eilpost by one on
the disk (`eilpost-lock`). Never of messages. Next: `mailstore/maildir.py`.
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

from mail.plainfile import open_plain
from mailstore.delivered import Delivered, boot_id
from mailstore.flush import SharedFlush
from mailstore.names import owner_directory

LOCK_SECONDS = 10.0  # how long a job waits for a mailbox before its mail is deferred
BOXES_MAX = 1024
IDS_MAX = 100_000  # delivery ids in memory, all mailboxes together (about 12 MB)
CHECK_EVERY = 256  # calls between two counts of those ids


class Locked(TimeoutError):
    """The mailbox lock is held by somebody else; nothing was changed."""


@dataclass(slots=True)
class Box:
    """One mailbox. `used_bytes` is what it held at `used_at`, None when that is not known."""

    path: Path
    delivered: Delivered
    flush_new: SharedFlush
    lock: threading.Lock = field(default_factory=threading.Lock)
    used_bytes: int | None = None
    used_at: float = 0.0
    swept: bool = False

    @contextmanager
    def locked(self, seconds: float) -> Iterator[None]:
        """The mailbox lock among threads and processes of eilpost. Raises Locked after `seconds`, and OSError."""
        deadline = time.monotonic() + seconds
        path = self.path / "eilpost-lock"
        if not self.lock.acquire(timeout=seconds):
            raise Locked(errno.EAGAIN, "the mailbox lock is held for too long", str(path))
        try:
            descriptor = open_plain(path, os.O_WRONLY | os.O_CREAT)
            try:
                while True:
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() > deadline:
                            raise Locked(errno.EAGAIN, "the mailbox lock is held for too long", str(path)) from None
                        time.sleep(0.002)
                yield
            finally:
                os.close(descriptor)  # gives the lock back
        finally:
            self.lock.release()


class Boxes:
    """The mailboxes used last."""

    def __init__(self, root: Path, remember_seconds: float) -> None:
        self._root = root
        self._remember_seconds = remember_seconds
        self._boot = boot_id()
        self._calls = 0
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Box] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def ids(self) -> int:
        """Delivery ids held in memory."""
        return sum(box.delivered.size for box in self._known.values())

    def of(self, owner: str) -> Box:
        with self._lock:
            box = self._known.get(owner)
            if box is None:
                path = self._root / owner_directory(owner)
                box = Box(path, Delivered(path, self._boot, self._remember_seconds), SharedFlush(path / "new"))
                self._known[owner] = box
            self._known.move_to_end(owner)
            self._calls += 1
            if len(self._known) > BOXES_MAX or self._calls % CHECK_EVERY == 0:
                self._forget()
            return box

    def _forget(self) -> None:
        """Let go of those longest unused. One in use is no harm: the lock on the disk orders the two."""
        ids = self.ids
        while len(self._known) > BOXES_MAX or (len(self._known) > 1 and ids > IDS_MAX):
            _owner, box = self._known.popitem(last=False)
            ids -= box.delivered.size
