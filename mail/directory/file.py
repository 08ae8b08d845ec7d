"""The directory as a TOML file, read again when it changes, without a restart and without dropping a connection.

The file is looked at every second (time, inode, size), which sees an atomic replacement, an edit in place and a changed
Kubernetes mount alike. It is read when it looks the same twice in a row: an editor that empties a file before it writes
it must not make everybody unknown for a second. A bad file leaves the last good snapshot in force and says so once, in
the log and in the metric; so does one that has lost all its domains, for an emptied file would make our own mail
somebody else's. Only the first load is strict: no snapshot, no service; there, no domains are a choice (a pure relay),
and worth a warning. Next: `mail/directory/passwords.py`.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import structlog

from mail.address import Address, AddressError
from mail.directory import DirectoryUnusable, Snapshot, User
from mail.directory.passwords import PasswordChecker, is_hash
from mail.directory.toml import parse_directory
from mail.plainfile import read_plain
from mail.telemetry.lookup import DIRECTORY_LAST_RELOAD, DIRECTORY_RELOADS

log = structlog.get_logger()

LOOK_EVERY = timedelta(seconds=1)

_Seen = tuple[int, int, int]  # all zero: there is no file


class FileDirectory:
    """`start()` loads and begins to watch; before it, the directory is empty."""

    def __init__(self, path: Path, *, look_every: timedelta = LOOK_EVERY) -> None:
        self._path = path
        self._look_every = look_every
        self._snapshot = Snapshot()
        self._seen: _Seen | None = None  # the state of the file that was read last
        self._glimpsed: _Seen | None = None  # a newer one, seen once
        self._checker = PasswordChecker()
        self._watch: asyncio.Task[None] | None = None

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def start(self) -> None:
        """Load and begin to watch. Raises DirectoryUnusable."""
        self._snapshot, self._seen = await asyncio.to_thread(load, self._path)
        DIRECTORY_LAST_RELOAD.set(1)
        if not self._snapshot.domains:
            log.warning("directory has no domains: no mail is local, all of it is relayed", file=str(self._path))
        self._watch = asyncio.create_task(self._keep_watching(), name="directory-watch")

    async def close(self) -> None:
        """Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        await self._checker.close()

    async def verify(self, login: str, password: str, *, timeout: timedelta = timedelta(seconds=10)) -> User | None:
        user = find_user(self._snapshot, login)
        return user if await self._checker.is_right(user, password, timeout) else None

    async def look(self) -> bool:
        """Read the file if it has changed and has come to rest; whether it was read."""
        seen = await asyncio.to_thread(_look, self._path)
        if seen == self._seen:
            return False
        if seen != self._glimpsed:
            self._glimpsed = seen
            return False
        await self.reload()
        return True

    async def reload(self) -> None:
        """Read the file now. A bad one leaves the last good snapshot in force."""
        self._seen = await asyncio.to_thread(_look, self._path)
        try:
            await self._load_again()
        except DirectoryUnusable as error:
            DIRECTORY_RELOADS.labels("failed").inc()
            DIRECTORY_LAST_RELOAD.set(0)
            log.error("directory not reloaded, the last good one stays", reason=str(error))  # noqa: TRY400
        else:
            DIRECTORY_RELOADS.labels("loaded").inc()
            DIRECTORY_LAST_RELOAD.set(1)
            log.info("directory reloaded", file=str(self._path), users=len(self._snapshot.users))

    async def _load_again(self) -> None:
        snapshot, self._seen = await asyncio.to_thread(load, self._path)
        if self._snapshot.domains and not snapshot.domains:
            had = len(self._snapshot.domains)
            raise DirectoryUnusable(
                f"{self._path}: has no domains, the last good one had {had}; if you want none, restart"
            )
        self._snapshot = snapshot

    async def _keep_watching(self) -> None:
        while True:
            await asyncio.sleep(self._look_every.total_seconds())
            try:
                await self.look()
            except Exception:
                log.exception("watching the directory file failed")


def find_user(snapshot: Snapshot, login: str) -> User | None:
    """Who logs in as `login`, a whole address in any case."""
    try:
        return snapshot.users.get(Address.parse(login, utf8=True).key)
    except AddressError:
        return None


def load(path: Path) -> tuple[Snapshot, _Seen]:
    """The snapshot in the file and the state of the file it was read from. Raises DirectoryUnusable."""
    text, status = read_text(path)
    return parse_directory(text, str(path), is_hash), (status.st_mtime_ns, status.st_ino, status.st_size)


def read_text(path: Path) -> tuple[str, os.stat_result]:
    """The file as text, and its state when it was read. Raises DirectoryUnusable."""
    try:
        octets, status = read_plain(path)
        return octets.decode(), status
    except FileNotFoundError as error:
        raise DirectoryUnusable(f"{path}: there is no such file (directory.url names it)") from error
    except OSError as error:
        raise DirectoryUnusable(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DirectoryUnusable(f"{path}: is not UTF-8 text (byte {error.start})") from error


def _look(path: Path) -> _Seen:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_ino, status.st_size
