"""What owners see of their Maildirs: the list, the content, the flags.

In charge of finding a message again that Dovecot moved or flagged meanwhile; nothing here trusts a listing to stay
true. Never adds or removes a message. Next: `mailstore/pop3/server.py`.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from mail.plainfile import open_plain
from mailstore.foreign import ForeignFiles, wire_size
from mailstore.listing import change_files, list_files
from mailstore.mailboxes import Kept
from mailstore.names import owner_directory, parse_name, with_seen

_LAST_SECOND = datetime.max.replace(microsecond=0, tzinfo=UTC).timestamp()
PLACES_MAX = 100_000  # file names in memory (about 20 MB)


class Reading:
    """Each method runs in the calling thread and raises OSError where the port raises MailboxUnavailable."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._places: OrderedDict[str, dict[str, str]] = OrderedDict()
        self._foreign = ForeignFiles()

    def messages(self, owner: str) -> list[Kept]:
        path = self._path(owner)
        # `new` before `cur`: a message that moves meanwhile is seen twice, never missed; the later sight counts.
        places = {found.name.uid: found for found in list_files(path)}
        kept: list[Kept] = []
        for uid, found in places.items():
            name, micros, size = found.name, found.name.micros, found.name.size_bytes
            if micros is None or size is None:
                try:
                    micros = micros if micros is not None else os.lstat(found.path).st_mtime_ns // 1000
                    size = size if size is not None else wire_size(found.path)
                except OSError:
                    continue
            kept.append(Kept(uid, size, _time(micros), name.seen))
        kept.sort(key=lambda message: (message.received, message.uid))
        with self._lock:
            # Of each only what finds it again: a large mailbox has many.
            self._places[owner] = {uid: f"{found.folder.name}/{found.file}" for uid, found in places.items()}
            self._places.move_to_end(owner)
            while len(self._places) > 1 and sum(map(len, self._places.values())) > PLACES_MAX:
                self._places.popitem(last=False)
        return kept

    def read(self, owner: str, uid: str, start: int, limit_bytes: int | None) -> bytes:
        for _attempt in range(2):
            with self._lock:
                place = self._places.get(owner, {}).get(uid)
            if place is not None:
                path = self._path(owner) / place
                try:
                    if parse_name(path.name).delivery_id is None:
                        return self._foreign.read(path, start, limit_bytes)
                    with open(open_plain(path), "rb") as file:
                        file.seek(start)
                        return file.read(-1 if limit_bytes is None else limit_bytes)
                except FileNotFoundError:
                    pass  # moved or flagged meanwhile: look where it is now
            self.messages(owner)
        raise KeyError(uid)

    def mark_seen(self, owner: str, uids: frozenset[str]) -> None:
        path = self._path(owner)
        cur = path / "cur"
        flagged = [found for found in list_files(path) if found.name.uid in uids and not found.name.seen]
        change_files(path, flagged, lambda found: os.rename(found.path, cur / with_seen(found.file)))

    def used_bytes(self, owner: str) -> int:
        return used_bytes(self._path(owner))

    def _path(self, owner: str) -> Path:
        return self._root / owner_directory(owner)


def _time(micros: int) -> datetime:
    """The nearest time there is: a file may bear any."""
    return datetime.fromtimestamp(min(max(micros / 1_000_000, 0.0), _LAST_SECOND), UTC)


def used_bytes(path: Path) -> int:
    """The sizes of all messages of a mailbox, those in folders too."""
    total = 0
    for found in list_files(path, folders=True):
        size = found.name.size_bytes
        if size is None:
            with suppress(OSError):
                size = os.lstat(found.path).st_size
        total += size or 0
    return total
