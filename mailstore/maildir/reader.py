"""Read side of a Maildir: list messages, read content, set the seen flag.

Dovecot may move or flag a message at any time, so a file that is missing is searched again before it counts as removed.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cachetools import LRUCache

from mail.regular_file import open_regular
from mailstore.mailboxes import StoredMessage
from mailstore.maildir import folders
from mailstore.maildir.external_files import ExternalFiles, virtual_size
from mailstore.maildir.listing import change_files, list_files
from mailstore.maildir.names import owner_directory, parse_name, with_seen

_LAST_SECOND = datetime.max.replace(microsecond=0, tzinfo=UTC).timestamp()
FILENAMES_MAX = 100_000  # cached file names (about 20 MB)


class MaildirReader:
    """Each method runs in the calling thread and raises OSError where the port raises MailboxUnavailable."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        # File names by owner and uid; only they are cached, to bound memory for large mailboxes.
        self._filenames: LRUCache[str, dict[str, str]] = LRUCache(
            FILENAMES_MAX, getsizeof=lambda filenames: min(1 + len(filenames), FILENAMES_MAX)
        )
        self._external_files = ExternalFiles()

    def messages(self, owner: str) -> list[StoredMessage]:
        path = self._path(owner)
        # `new` before `cur`: a message moved meanwhile is listed twice, never missed; the later entry is used.
        files = {file.name.uid: file for file in list_files(path)}
        messages: list[StoredMessage] = []
        for uid, file in files.items():
            name, micros, size = file.name, file.name.micros, file.name.size_bytes
            if micros is None or size is None:
                try:
                    micros = micros if micros is not None else os.lstat(file.path).st_mtime_ns // 1000
                    size = size if size is not None else virtual_size(file.path)
                except OSError:
                    continue
            messages.append(StoredMessage(uid, size, _time(micros), name.seen))
        messages.sort(key=lambda message: (message.received, message.uid))
        with self._lock:
            self._filenames[owner] = {uid: f"{file.folder.name}/{file.filename}" for uid, file in files.items()}
        return messages

    def read(self, owner: str, uid: str, start: int, limit_bytes: int | None) -> bytes:
        for _attempt in range(2):
            with self._lock:
                filename = self._filenames.get(owner, {}).get(uid)
            if filename is not None:
                path = self._path(owner) / filename
                try:
                    if parse_name(path.name).delivery_id is None:
                        return self._external_files.read(path, start, limit_bytes)
                    with open(open_regular(path), "rb") as file:
                        file.seek(start)
                        return file.read(-1 if limit_bytes is None else limit_bytes)
                except FileNotFoundError:
                    pass  # moved or flagged meanwhile: list again
            self.messages(owner)
        raise KeyError(uid)

    def mark_seen(self, owner: str, uids: frozenset[str]) -> None:
        path = self._path(owner)
        cur = path / "cur"
        unseen = [file for file in list_files(path) if file.name.uid in uids and not file.name.seen]
        change_files(path, unseen, lambda file: folders.rename(file.path, cur / with_seen(file.filename)))

    def used_bytes(self, owner: str) -> int:
        return used_bytes(self._path(owner))

    def _path(self, owner: str) -> Path:
        return self._root / owner_directory(owner)


def _time(micros: int) -> datetime:
    """`micros` clamped to the range of datetime: a file name may hold any number."""
    return datetime.fromtimestamp(min(max(micros / 1_000_000, 0.0), _LAST_SECOND), UTC)


def used_bytes(path: Path) -> int:
    """Size of all messages of a mailbox, including folders."""
    total = 0
    for file in list_files(path, folders=True):
        size = file.name.size_bytes
        if size is None:
            with suppress(OSError):
                size = os.lstat(file.path).st_size
        total += size or 0
    return total
