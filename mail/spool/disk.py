"""Spool in a local directory, with group commit and its own threads for disk operations.

A file is written to `tmp`, synced, renamed and its directory synced; content stored concurrently shares one file
(`mail/spool/group_commit.py`), large content has its own. There is one directory per hour (UTC), so that a sweep
removes whole directories.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import structlog

from mail.fsync import fsync_directory
from mail.message import Spooled
from mail.queue_id import new_queue_id
from mail.regular_file import NotRegularFile, open_regular
from mail.spool import SpoolDamaged, SpoolUnavailable
from mail.spool.group_commit import (
    LARGE_BYTES,
    BatchName,
    GroupCommit,
    digest_of,
    hour_start,
    location_of,
    new_batch_name,
    spooled_contents,
)
from mail.telemetry.spool import READ_DURATION, SPOOL_BYTES, SPOOL_ERRORS, SWEEP_DURATION, WRITE_DURATION

logger = structlog.get_logger()

TMP_MAX_AGE = timedelta(hours=1)  # an older file in tmp/ is a leftover of a crash
_THREADS = 4

T = TypeVar("T")


class DiskSpool:
    """`path` is created if missing. Raises SpoolUnavailable when it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tmp = path / "tmp"
        self._group_commit = GroupCommit(self._write)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spool")
        self._large_writes = asyncio.Semaphore(_THREADS - 1)  # one thread remains for batches and reads
        self._last_write_failed = False
        self._written_bytes = SPOOL_BYTES.labels("written")
        self._read_bytes = SPOOL_BYTES.labels("read")
        try:
            self._create()
            self._device = os.stat(path).st_dev
            self._test_write()
        except OSError as error:
            raise self._unavailable("open", error) from error

    async def start(self) -> None:
        """The constructor has checked the directory."""

    async def put(self, content: bytes) -> Spooled:
        with WRITE_DURATION.time():
            if len(content) < LARGE_BYTES:
                return await self._group_commit.put(content)
            async with self._large_writes:
                return (await self._write([content]))[0]

    async def read(self, spooled: Spooled, limit_bytes: int | None = None) -> bytes:
        batch, offset = location_of(spooled)
        file = self._path / batch.hour / batch.id
        with READ_DURATION.time():
            return await self._in_thread("read", lambda: self._read_file(file, offset, spooled, limit_bytes))

    async def sweep(self, older_than: datetime) -> int:
        with SWEEP_DURATION.time():
            return await self._in_thread("sweep", lambda: self._sweep(older_than, datetime.now(UTC)))

    async def free_bytes(self) -> int | None:
        return await self._in_thread("check", self._check_free)

    async def close(self) -> None:
        """Wait for the writes in progress. Idempotent."""
        await self._group_commit.drain()
        await asyncio.to_thread(self._threads.shutdown)

    async def _write(self, contents: Sequence[bytes]) -> list[Spooled]:
        return await self._in_thread("write", lambda: self._write_file(contents))

    async def _in_thread(self, verb: str, work: Callable[[], T]) -> T:
        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except RuntimeError as error:
            raise SpoolUnavailable("the spool is closed") from error
        try:
            return await future
        except OSError as error:
            raise self._unavailable(verb, error) from error

    def _unavailable(self, verb: str, error: OSError) -> SpoolUnavailable:
        SPOOL_ERRORS.labels("unavailable").inc()
        return SpoolUnavailable(f"cannot {verb} the spool at {error.filename or self._path}: {error.strerror or error}")

    # The methods below run in a thread.

    def _create(self) -> None:
        self._tmp.mkdir(parents=True, exist_ok=True)
        fsync_directory(self._path.absolute().parent)
        fsync_directory(self._path)

    def _recreate(self) -> None:
        """Create a removed directory again. An unmounted volume is not replaced: files written below its mount point
        would be hidden after the mount.
        """
        ancestor = self._path.absolute()
        while not ancestor.exists():
            ancestor = ancestor.parent
        if os.stat(ancestor).st_dev != self._device:
            raise OSError(errno.ENOENT, "the volume is not mounted any more; mount it", str(self._path))
        self._create()
        logger.error("spool directory was removed and is created again: its content is lost", path=str(self._path))

    def _check_free(self) -> int:
        if not self._tmp.is_dir():
            self._recreate()
        if self._last_write_failed:  # a quota or a read-only disk does not change the free space
            self._test_write(b"?" * 4096)
            self._last_write_failed = False
        return shutil.disk_usage(self._path).free

    def _test_write(self, content: bytes = b"") -> None:
        path = self._tmp / str(new_queue_id())
        try:
            with open(path, "xb", buffering=0) as file:
                _write_all(file.fileno(), content)
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)

    def _write_file(self, contents: Sequence[bytes]) -> list[Spooled]:
        name = new_batch_name()
        tmp = self._tmp / name.id
        try:
            if not self._tmp.is_dir():
                self._recreate()
            with open(tmp, "xb", buffering=0) as file:
                for content in contents:
                    _write_all(file.fileno(), content)
                os.fsync(file.fileno())
            self._publish(tmp, name)
        except OSError:
            self._last_write_failed = True
            with suppress(OSError):
                tmp.unlink()
            raise
        self._last_write_failed = False
        self._written_bytes.inc(sum(map(len, contents)))
        return spooled_contents(name, contents)

    def _publish(self, tmp: Path, name: BatchName) -> None:
        hour = self._path / name.hour
        try:
            os.rename(tmp, hour / name.id)
        except FileNotFoundError:
            hour.mkdir(exist_ok=True)  # the first file of this hour
            fsync_directory(self._path)
            os.rename(tmp, hour / name.id)
        fsync_directory(hour)

    def _read_file(self, file: Path, offset: int, spooled: Spooled, limit_bytes: int | None) -> bytes:
        size = spooled.size_bytes if limit_bytes is None else min(limit_bytes, spooled.size_bytes)
        try:
            descriptor = open_regular(file)
        except NotRegularFile as error:
            raise _damaged(file, "is not a regular file") from error
        except FileNotFoundError as error:
            if not self._tmp.is_dir():  # the volume is not mounted; the file is not lost
                raise
            raise _damaged(file, "is missing") from error
        with open(descriptor, "rb") as opened:
            opened.seek(offset)
            content = opened.read(size)
        if len(content) != size:
            raise _damaged(file, f"ends after {len(content)} of {size} bytes at {offset}")
        if limit_bytes is None and digest_of(content) != spooled.digest:
            raise _damaged(file, f"has a wrong checksum at offset {offset}")
        self._read_bytes.inc(size)
        return content

    def _sweep(self, older_than: datetime, now: datetime) -> int:
        """Remove directories of hours before `older_than`; in the hour of `older_than`, remove files by their age."""
        removed = _remove_older(self._tmp, min(older_than, now - TMP_MAX_AGE))
        for directory in sorted(self._path.iterdir()):
            start = hour_start(directory.name)
            if start is None:
                continue  # not a spool directory
            if start >= older_than:
                break
            removed += _remove_older(directory, older_than)
            if start + timedelta(hours=2) < now:  # no process writes to it any more
                with suppress(OSError):
                    directory.rmdir()
        return removed


def _remove_older(directory: Path, older_than: datetime) -> int:
    removed = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_mtime < older_than.timestamp():
                os.unlink(entry.path)
                removed += 1
    return removed


def _damaged(file: Path, defect: str) -> SpoolDamaged:
    SPOOL_ERRORS.labels("damaged").inc()
    return SpoolDamaged(
        f"spool file {file} {defect}: restore it from a backup; otherwise its mail expires in the queue"
    )


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
