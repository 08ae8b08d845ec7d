"""Directory in a TOML file, reloaded when the file changes.

The file's mtime, inode and size are polled every second; a changed file is read once two polls agree, so that a
half-written file is not loaded. An invalid file, or one without domains after one with domains, is logged and the last
valid snapshot stays in use. The first load must succeed; without domains it logs a warning (a pure relay).
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path

import structlog

from mail.address import Address, AddressError
from mail.directory import DirectoryUnusable, Snapshot, User
from mail.directory.passwords import PasswordChecker, is_hash
from mail.directory.toml import parse_directory
from mail.regular_file import read_regular
from mail.tasks import cancel_tasks, periodically
from mail.telemetry.lookup import DIRECTORY_LAST_RELOAD, DIRECTORY_RELOADS

logger = structlog.get_logger()

POLL_INTERVAL = timedelta(seconds=1)

_FileState = tuple[int, int, int]  # all zero: there is no file


class FileDirectory:
    """Before `start()` the directory is empty."""

    def __init__(self, path: Path, *, poll_interval: timedelta = POLL_INTERVAL) -> None:
        self._path = path
        self._poll_interval = poll_interval
        self._snapshot = Snapshot()
        self._loaded_state: _FileState | None = None  # state of the last file read
        self._changed_state: _FileState | None = None  # a newer state, seen by one poll
        self._password_checker = PasswordChecker()
        self._watch_task: asyncio.Task[None] | None = None

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def start(self) -> None:
        """Load the file and start to watch it. Raises DirectoryUnusable."""
        self._snapshot, self._loaded_state = await asyncio.to_thread(load, self._path)
        DIRECTORY_LAST_RELOAD.set(1)
        if not self._snapshot.domains:
            effect = "only clients in ingress.relay_networks can send mail, all others get 550 5.7.1"
            logger.warning(f"directory has no domains: no address is local; {effect}", path=str(self._path))
        event = "directory not checked, last good version stays in use"
        watch = periodically(self._poll_interval.total_seconds(), self.poll, event, path=str(self._path))
        self._watch_task = asyncio.create_task(watch, name="directory-watch")

    async def close(self) -> None:
        """Idempotent."""
        await cancel_tasks(self._watch_task)
        await self._password_checker.close()

    async def authenticate(
        self, login: str, password: str, *, timeout: timedelta = timedelta(seconds=10)
    ) -> User | None:
        user = find_user(self._snapshot, login)
        return user if await self._password_checker.check(user, password, timeout) else None

    async def poll(self) -> bool:
        """Reload the file if it changed and two polls agree; returns whether it was read."""
        state = await asyncio.to_thread(_file_state, self._path)
        if state == self._loaded_state:
            return False
        if state != self._changed_state:
            self._changed_state = state
            return False
        await self.reload()
        return True

    async def reload(self) -> None:
        """Reload the file now. If it is invalid, the last good snapshot stays in use."""
        self._loaded_state = await asyncio.to_thread(_file_state, self._path)
        try:
            await self._load()
        except DirectoryUnusable as error:
            DIRECTORY_RELOADS.labels("failed").inc()
            DIRECTORY_LAST_RELOAD.set(0)
            logger.error("directory not reloaded, last good version stays in use", error=str(error))  # noqa: TRY400
        else:
            DIRECTORY_RELOADS.labels("loaded").inc()
            DIRECTORY_LAST_RELOAD.set(1)
            snapshot = self._snapshot
            logger.info(
                "directory reloaded",
                path=str(self._path),
                domains=len(snapshot.domains),
                users=len(snapshot.users),
                aliases=len(snapshot.aliases),
            )

    async def _load(self) -> None:
        snapshot, self._loaded_state = await asyncio.to_thread(load, self._path)
        if self._snapshot.domains and not snapshot.domains:
            previous = len(self._snapshot.domains)
            raise DirectoryUnusable(
                f"{self._path}: contains no domains, last good version had {previous}; restart eilpost to accept it"
            )
        self._snapshot = snapshot


def find_user(snapshot: Snapshot, login: str) -> User | None:
    """The user with the login `login`: a complete address; case is ignored."""
    try:
        return snapshot.users.get(Address.parse(login, utf8=True).key)
    except AddressError:
        return None


def load(path: Path) -> tuple[Snapshot, _FileState]:
    """The snapshot and the state of the file. Raises DirectoryUnusable."""
    text, status = read_text(path)
    snapshot = parse_directory(text, str(path), is_hash)
    _ = (
        snapshot.alias_distances
    )  # evaluated here, in a thread, and cached: a large directory would block the event loop
    return snapshot, (status.st_mtime_ns, status.st_ino, status.st_size)


def read_text(path: Path) -> tuple[str, os.stat_result]:
    """The text and the status of the file. Raises DirectoryUnusable."""
    try:
        octets, status = read_regular(path)
        return octets.decode("utf-8-sig"), status
    except FileNotFoundError as error:
        raise DirectoryUnusable(f"{path}: there is no such file (directory.url names it)") from error
    except OSError as error:
        raise DirectoryUnusable(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DirectoryUnusable(f"{path}: is not UTF-8 text (byte {error.start})") from error


def _file_state(path: Path) -> _FileState:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_ino, status.st_size
