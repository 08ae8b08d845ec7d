"""Maildir adapter of the Mailboxes port: one directory per owner, one file per message, readable by Dovecot.

Order of an append: write and fsync the file in `tmp`; link it into `new`; write the delivery id to the journal; unlink
the `tmp` file; fsync `new`. After a crash between any two steps, a second `append` of the id finds the journal line or
the `tmp` file and ends with one message. See docs/mailboxes.md. Next: `mailstore/maildir/reader.py`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

import structlog

from mail.fsync import fsync_directory
from mail.message import DeliveryId
from mail.telemetry.mailstore import MAILBOX_APPEND
from mailstore.mailboxes import MailboxFull, MailboxInUse, MailboxUnavailable, MessageTooLarge, StoredMessage
from mailstore.maildir import folders
from mailstore.maildir.delivery_journal import JournalState
from mailstore.maildir.limiter import MailboxLimiter
from mailstore.maildir.listing import MailboxFile, change_files, list_files, tmp_files_of
from mailstore.maildir.mailbox_lock import Mailbox, MailboxCache
from mailstore.maildir.names import message_name, owner_directory, parse_name
from mailstore.maildir.reader import MaildirReader, used_bytes
from mailstore.maildir.session_lock import SessionLock

logger = structlog.get_logger()
_T = TypeVar("_T")

WRITERS = 16  # threads, mostly waiting for the disk
READERS = 4
TMP_MAX_AGE_SECONDS = 36 * 3600.0  # as in the Maildir document and in Dovecot
USED_BYTES_TTL_SECONDS = 60.0  # cache time of the mailbox size; before a refusal it is always measured


@dataclass(slots=True)
class AppendRequest:
    """One `append` across its attempts to lock the mailbox; the `tmp` file is written once."""

    owner: str
    delivery_id: DeliveryId
    content: bytes
    quota_bytes: int | None
    tmp_file: Path | None = None  # until it is linked and unlinked
    name: str = ""  # in `new`

    def discard(self) -> None:
        """Remove the `tmp` file, while no thread uses it. A cancelled caller leaves the file; the next `append` of the
        id removes it.
        """
        tmp_file, self.tmp_file = self.tmp_file, None
        if tmp_file is not None:
            with suppress(OSError):
                os.unlink(tmp_file)


class Maildir:
    """The Mailboxes port over a directory."""

    def __init__(
        self,
        path: Path,
        hostname: str,
        *,
        retention: timedelta = timedelta(days=14),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`retention` is the minimum time a delivery id is kept; it must exceed the queue lifetime."""
        self._root = path
        self._hostname = hostname
        self.retention = retention
        self._retention_seconds = retention.total_seconds()
        self._clock = clock
        self._process = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._tmp_counter = count(1)
        self._mailboxes = MailboxCache(path, self._retention_seconds)
        self._reader = MaildirReader(path)
        self._limiter = MailboxLimiter()
        self._writers = ThreadPoolExecutor(WRITERS, "maildir-write")
        self._readers = ThreadPoolExecutor(READERS, "maildir-read")

    # The port: each call is one job of a bounded thread pool

    async def append(self, owner: str, delivery_id: DeliveryId, content: bytes, quota_bytes: int | None = None) -> bool:
        started = time.perf_counter()
        request = AppendRequest(owner, delivery_id, content, quota_bytes)
        try:
            is_new = await self._run_locking(owner, partial(self._append, request))
        except (MailboxFull, MailboxUnavailable):
            request.discard()
            raise
        MAILBOX_APPEND.observe(time.perf_counter() - started)
        return is_new

    @asynccontextmanager
    async def session_lock(self, owner: str) -> AsyncIterator[None]:
        path = self._root / owner_directory(owner)
        session_lock = SessionLock(path)
        try:
            if not await self._run_in(self._readers, partial(self._acquire_session_lock, path, session_lock)):
                raise MailboxInUse(owner)
            yield
        finally:
            session_lock.release()  # also when cancelled while a thread acquires it

    async def messages(self, owner: str) -> Sequence[StoredMessage]:
        return await self._run_in(self._readers, partial(self._reader.messages, owner))

    async def read(self, owner: str, uid: str, start: int = 0, limit_bytes: int | None = None) -> bytes:
        return await self._run_in(self._readers, partial(self._reader.read, owner, uid, start, limit_bytes))

    async def expunge(self, owner: str, uids: Collection[str]) -> None:
        await self._run_locking(owner, partial(self._expunge, owner, frozenset(uids)))

    async def mark_seen(self, owner: str, uids: Collection[str]) -> None:
        await self._run_in(self._writers, partial(self._reader.mark_seen, owner, frozenset(uids)))

    async def used_bytes(self, owner: str) -> int:
        return await self._run_in(self._readers, partial(self._reader.used_bytes, owner))

    async def _run_in(self, pool: ThreadPoolExecutor, job: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, job)
        except OSError as error:
            raise self._unavailable(error) from error

    async def _run_locking(self, owner: str, job: Callable[[float], _T]) -> _T:
        """Run `job(lock_seconds)`, which locks the mailbox."""
        loop = asyncio.get_running_loop()
        try:
            return await self._limiter.run(owner, lambda seconds: loop.run_in_executor(self._writers, job, seconds))
        except OSError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: OSError) -> MailboxUnavailable:
        return MailboxUnavailable(f"{error.filename or self._root}: {error.strerror or error}")

    def _acquire_session_lock(self, path: Path, lock: SessionLock) -> bool:
        try:
            return lock.acquire()
        except FileNotFoundError:
            self._create_directories(path)  # the mailbox has no messages yet
            return lock.acquire()

    # Append

    def _append(self, request: AppendRequest, lock_seconds: float) -> bool:
        """After MailboxLocked, call again with the same `request`, or call `request.discard()`."""
        owner, delivery_id, content = request.owner, request.delivery_id, request.content
        quota_bytes = request.quota_bytes
        mailbox = self._mailboxes.get(owner)
        now = self._clock()
        if quota_bytes is not None and len(content) > quota_bytes:
            # Appended before the quota was lowered: report the duplicate, not a refusal.
            if self._appended_before(mailbox, delivery_id, now, lock_seconds):
                self._flush_new_and_cur(mailbox.path)
                return False
            raise MessageTooLarge(f"{owner}: {len(content)} octets exceed the quota of {quota_bytes}")
        if request.tmp_file is None:
            virtual_bytes = len(content) + content.count(b"\n") - content.count(b"\r\n")
            request.name = message_name(int(now * 1_000_000), delivery_id, self._hostname, len(content), virtual_bytes)
            tmp_file = mailbox.path / "tmp" / f"{request.name}.{self._process}.{next(self._tmp_counter)}"
            self._write(mailbox, tmp_file, content)  # 1: content durable
            request.tmp_file = tmp_file
        tmp_file = request.tmp_file
        keep_tmp_file = False
        with mailbox.locked(lock_seconds):
            self._refresh_journal(mailbox, now)
            if not mailbox.tmp_swept:
                self._sweep_tmp(mailbox, now)
            earlier = [name for name in tmp_files_of(mailbox.path / "tmp", delivery_id) if name != tmp_file.name]
            is_new = not self._was_appended(mailbox, delivery_id, suspect=bool(earlier))
            if is_new:
                if quota_bytes is not None:
                    self._check_quota(mailbox, owner, len(content), quota_bytes, now)
                self._link(mailbox.path, tmp_file, request.name)  # 2: visible in the mailbox
                if mailbox.used_bytes is not None:
                    mailbox.used_bytes += len(content)
            if mailbox.journal.lookup(delivery_id) is not JournalState.RECORDED:
                try:
                    mailbox.journal.record_append(delivery_id)  # 3: delivery id recorded
                except OSError as error:
                    if not is_new:
                        raise
                    # The message is in the mailbox without a journal line: keep the `tmp` file as evidence of the link.
                    logger.warning(
                        "mailbox journal not written, message is in the mailbox",
                        user=owner,
                        delivery_id=delivery_id,
                        error=error.strerror,
                    )
                    keep_tmp_file = True
        request.tmp_file = None
        if not keep_tmp_file:
            for name in [tmp_file.name, *earlier]:
                with suppress(OSError):
                    os.unlink(tmp_file.parent / name)  # 4: only the link in `new` remains
        if is_new:
            mailbox.flush_new.flush()  # 5: link durable
        else:
            self._flush_new_and_cur(mailbox.path)  # the first `append` may have ended before its flush
        return is_new

    def _write(self, mailbox: Mailbox, tmp_file: Path, content: bytes) -> None:
        try:
            descriptor = folders.create(tmp_file)
        except FileNotFoundError:
            self._create_directories(mailbox.path)
            descriptor = folders.create(tmp_file)
        try:
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            with suppress(OSError):
                os.unlink(tmp_file)
            raise

    def _link(self, path: Path, tmp_file: Path, name: str) -> None:
        try:
            folders.link(tmp_file, path / "new" / name)
        except FileNotFoundError:
            self._create_directories(path)  # `new` was removed by another program or lost in a power failure
            folders.link(tmp_file, path / "new" / name)
        except OSError:
            if os.stat(tmp_file).st_nlink < 2:  # NFS may report an error for a link that succeeded
                raise

    def _flush_new_and_cur(self, path: Path) -> None:
        for name in ("new", "cur"):
            with suppress(FileNotFoundError):
                fsync_directory(path / name)

    def _create_directories(self, path: Path) -> None:
        """Create the directories of a mailbox, `tmp` last: when it exists, the others do."""
        missing = [path]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
            fsync_directory(folder.parent)
        for name in ("cur", "new", "tmp"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
        fsync_directory(path)

    def _appended_before(self, mailbox: Mailbox, delivery_id: DeliveryId, now: float, lock_seconds: float) -> bool:
        if not mailbox.path.exists():
            return False
        with mailbox.locked(lock_seconds):
            self._refresh_journal(mailbox, now)
            suspect = bool(tmp_files_of(mailbox.path / "tmp", delivery_id))
            return self._was_appended(mailbox, delivery_id, suspect=suspect)

    def _was_appended(self, mailbox: Mailbox, delivery_id: DeliveryId, *, suspect: bool) -> bool:
        """`suspect`: an earlier `append` left a `tmp` file, so it may have been interrupted after the link."""
        match mailbox.journal.lookup(delivery_id):
            case JournalState.RECORDED:
                return True
            case JournalState.ABSENT if not suspect:
                return False
            case _:
                return any(file.name.delivery_id == delivery_id for file in list_files(mailbox.path, folders=True))

    def _check_quota(self, mailbox: Mailbox, owner: str, size_bytes: int, quota_bytes: int, now: float) -> None:
        if (
            mailbox.used_bytes is None
            or now - mailbox.used_at > USED_BYTES_TTL_SECONDS
            or mailbox.used_bytes + size_bytes > quota_bytes
        ):
            mailbox.used_bytes, mailbox.used_at = used_bytes(mailbox.path), now
        if mailbox.used_bytes + size_bytes > quota_bytes:
            raise MailboxFull(f"{owner}: {mailbox.used_bytes} of {quota_bytes} octets used")

    def _refresh_journal(self, mailbox: Mailbox, now: float) -> None:
        mailbox.journal.refresh(now, lambda: self._recent_ids(list_files(mailbox.path, folders=True), now))

    def _recent_ids(self, files: Iterable[MailboxFile], now: float) -> set[DeliveryId]:
        """The delivery ids of the files within the retention time."""
        oldest = (now - self._retention_seconds) * 1_000_000
        return {f.name.delivery_id for f in files if f.name.delivery_id and (f.name.micros or 0) > oldest}

    def _sweep_tmp(self, mailbox: Mailbox, now: float) -> None:
        """Remove old files in `tmp` once per mailbox and process; ids of linked files are recorded first."""
        mailbox.tmp_swept = True
        with os.scandir(mailbox.path / "tmp") as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if now - status.st_mtime < TMP_MAX_AGE_SECONDS:
                        continue
                    delivery_id = parse_name(entry.name.rpartition(".")[0].rpartition(".")[0]).delivery_id
                    if (
                        status.st_nlink > 1
                        and delivery_id
                        and mailbox.journal.lookup(delivery_id) is not JournalState.RECORDED
                    ):
                        mailbox.journal.record_append(delivery_id)
                    os.unlink(entry.path)

    # Expunge

    def _expunge(self, owner: str, uids: frozenset[str], lock_seconds: float) -> None:
        mailbox = self._mailboxes.get(owner)
        now = self._clock()
        files = [file for file in list_files(mailbox.path) if file.name.uid in uids]
        if not files:
            return
        with mailbox.locked(lock_seconds):
            self._refresh_journal(mailbox, now)
            if ids := self._recent_ids(files, now):
                mailbox.journal.record_expunge(sorted(ids))
            mailbox.used_bytes = None
            change_files(mailbox.path, files, lambda file: os.unlink(file.path))
        self._flush_new_and_cur(mailbox.path)
