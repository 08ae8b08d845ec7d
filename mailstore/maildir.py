"""Mailboxes as Maildirs that Dovecot reads: one directory per owner, one file per message, each kept exactly once.

In charge of what comes and goes, and of its order on disk: content to `tmp`, flushed; link into `new`; the delivery id
to the journal; `tmp` unlinked; `new` flushed. Whichever of these a crash cuts off, a second `keep` of the id finds its
traces (the journal line, or the file in `tmp`) and ends with one message. The mailbox lock (`box`) orders the processes
of eilpost; Dovecot needs none. Content is stored byte for byte. Never decides who may read. docs/mailboxes.md is for
people. Next: `mailstore/reading.py`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

import structlog

from mail.message import DeliveryId
from mail.telemetry.mailstore import MAILBOX_APPEND
from mailstore.box import LOCK_SECONDS, Box, Boxes
from mailstore.delivered import Knowledge
from mailstore.flush import flush_directory
from mailstore.listing import change_files, drafts_of, list_files
from mailstore.mailboxes import Kept, MailboxFull, MailboxInUse, MailboxUnavailable, MessageTooLarge
from mailstore.maildrop import MaildropLock
from mailstore.names import message_name, owner_directory, parse_name
from mailstore.reading import Reading, used_bytes
from mailstore.turns import Turns

log = structlog.get_logger()
_T = TypeVar("_T")

WRITERS = 16  # threads; each waits for the disk most of the time
READERS = 4
DEBRIS_SECONDS = 36 * 3600.0  # what the Maildir document and Dovecot say
USED_SECONDS = 60.0  # how long a sum of sizes is believed; a message is never refused on an old sum


class Keeping:
    """One `keep`, over its tries for the mailbox lock: what was written before the first is there for the next."""

    __slots__ = ("draft", "name", "terms")

    def __init__(self, owner: str, delivery_id: DeliveryId, content: bytes, quota_bytes: int | None) -> None:
        self.terms = owner, delivery_id, content, quota_bytes
        self.draft: Path | None = None  # in `tmp`, until it is linked and unlinked
        self.name = ""  # in `new`

    def give_up(self) -> None:
        """Remove what is left of it; only while no thread is at it. A caller that is cancelled leaves it: the next
        `keep` of the id tidies up.
        """
        draft, self.draft = self.draft, None
        if draft is not None:
            with suppress(OSError):
                os.unlink(draft)


class Maildir:
    """The Mailboxes port over a directory."""

    def __init__(
        self,
        path: Path,
        hostname: str,
        *,
        remember: timedelta = timedelta(days=14),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`remember` is for how long a delivery id is known at least; longer than the queue's lifetime."""
        self._root = path
        self._hostname = hostname
        self.remember = remember
        self._remember_seconds = remember.total_seconds()
        self._clock = clock
        self._process = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._drafts = count(1)
        self._boxes = Boxes(path, self._remember_seconds)
        self._reading = Reading(path)
        self._turns = Turns()
        self._writers = ThreadPoolExecutor(WRITERS, "maildir-write")
        self._readers = ThreadPoolExecutor(READERS, "maildir-read")

    # The port: each call is one job of a bounded pool of threads.

    async def keep(self, owner: str, delivery_id: DeliveryId, content: bytes, quota_bytes: int | None = None) -> bool:
        begun = time.perf_counter()
        keeping = Keeping(owner, delivery_id, content, quota_bytes)
        try:
            new = await self._turns.run(owner, lambda seconds: self._write_in(partial(self._keep, keeping, seconds)))
        except OSError as error:
            keeping.give_up()
            raise self._unavailable(error) from error
        except MailboxFull:
            keeping.give_up()
            raise
        MAILBOX_APPEND.observe(time.perf_counter() - begun)
        return new

    @asynccontextmanager
    async def reserve(self, owner: str) -> AsyncIterator[None]:
        path = self._root / owner_directory(owner)
        lock = MaildropLock(path)
        try:
            if not await self._in(self._readers, partial(self._take, path, lock)):
                raise MailboxInUse(owner)
            yield
        finally:
            lock.release()  # also when we were cancelled while a thread takes it

    async def messages(self, owner: str) -> Sequence[Kept]:
        return await self._in(self._readers, partial(self._reading.messages, owner))

    async def read(self, owner: str, uid: str, start: int = 0, limit_bytes: int | None = None) -> bytes:
        return await self._in(self._readers, partial(self._reading.read, owner, uid, start, limit_bytes))

    async def expunge(self, owner: str, uids: Collection[str]) -> None:
        job = partial(self._expunge, owner, frozenset(uids))
        try:
            await self._turns.run(owner, lambda seconds: self._write_in(partial(job, seconds)))
        except OSError as error:
            raise self._unavailable(error) from error

    async def mark_seen(self, owner: str, uids: Collection[str]) -> None:
        await self._in(self._writers, partial(self._reading.mark_seen, owner, frozenset(uids)))

    async def used_bytes(self, owner: str) -> int:
        return await self._in(self._readers, partial(self._reading.used_bytes, owner))

    async def _in(self, pool: ThreadPoolExecutor, job: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, job)
        except OSError as error:
            raise self._unavailable(error) from error

    async def _write_in(self, job: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._writers, job)

    def _unavailable(self, error: OSError) -> MailboxUnavailable:
        return MailboxUnavailable(f"{error.filename or self._root}: {error.strerror or error}")

    def _take(self, path: Path, lock: MaildropLock) -> bool:
        try:
            return lock.take()
        except FileNotFoundError:
            self._make(path)  # no mail yet
            return lock.take()

    # Keeping

    def keep_now(self, owner: str, delivery_id: DeliveryId, content: bytes, quota_bytes: int | None) -> bool:
        """`keep`, in the calling thread. Raises OSError where the port raises MailboxUnavailable."""
        keeping = Keeping(owner, delivery_id, content, quota_bytes)
        try:
            return self._keep(keeping, LOCK_SECONDS)
        except (OSError, MailboxFull, MessageTooLarge):
            keeping.give_up()
            raise

    def _keep(self, keeping: Keeping, lock_seconds: float) -> bool:
        """After Locked, call it again with the same `keeping`, or let that `give_up`."""
        owner, delivery_id, content, quota_bytes = keeping.terms
        box = self._boxes.of(owner)
        now = self._clock()
        if quota_bytes is not None and len(content) > quota_bytes:
            # Kept before the quota shrank? Then it is no refusal.
            if self._kept_before(box, delivery_id, now, lock_seconds):
                self._flush_both(box.path)
                return False
            raise MessageTooLarge(f"{owner}: {len(content)} octets are more than the quota of {quota_bytes}")
        if keeping.draft is None:
            wire_bytes = len(content) + content.count(b"\n") - content.count(b"\r\n")
            keeping.name = message_name(int(now * 1_000_000), delivery_id, self._hostname, len(content), wire_bytes)
            draft = box.path / "tmp" / f"{keeping.name}.{self._process}.{next(self._drafts)}"
            self._write(box, draft, content)  # 1: the content is on the disk
            keeping.draft = draft
        draft = keeping.draft
        witness = False
        with box.locked(lock_seconds):
            box.delivered.refresh(now, partial(self._ids, box.path, now))
            if not box.swept:
                self._sweep(box, now)
            drafts = [other for other in drafts_of(box.path / "tmp", delivery_id) if other != draft.name]
            new = not self._was_kept(box, delivery_id, suspect=bool(drafts))
            if new:
                if quota_bytes is not None:
                    self._check_quota(box, owner, len(content), quota_bytes, now)
                self._link(box.path, draft, keeping.name)  # 2: it is in the mailbox
                if box.used_bytes is not None:
                    box.used_bytes += len(content)
            if box.delivered.knows(delivery_id) is not Knowledge.KEPT:
                try:
                    box.delivered.add(delivery_id)  # 3: its id is known
                except OSError as error:
                    if not new:
                        raise
                    # It is kept, but only the name in `new` and the draft say so: leave the draft as a witness.
                    log.warning(
                        "mailbox journal not written", owner=owner, delivery_id=delivery_id, reason=error.strerror
                    )
                    witness = True
        keeping.draft = None
        if not witness:
            for debris in [draft.name, *drafts]:
                with suppress(OSError):
                    os.unlink(draft.parent / debris)  # 4: only the name in `new` is left
        if new:
            box.flush_new.flush()  # 5: that name is on the disk
        else:
            self._flush_both(box.path)  # the first `keep` may have died, or failed, before its flush
        return new

    def _write(self, box: Box, draft: Path, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(draft, flags, 0o600)
        except FileNotFoundError:
            self._make(box.path)
            descriptor = os.open(draft, flags, 0o600)
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
                os.unlink(draft)
            raise

    def _link(self, path: Path, draft: Path, name: str) -> None:
        try:
            os.link(draft, path / "new" / name)
        except FileNotFoundError:
            self._make(path)  # `new` is missing: somebody tidied up, or a power cut did
            os.link(draft, path / "new" / name)
        except OSError:
            if os.stat(draft).st_nlink < 2:  # over NFS an error may follow a link that was made
                raise

    def _flush_both(self, path: Path) -> None:
        for name in ("new", "cur"):
            with suppress(FileNotFoundError):
                flush_directory(path / name)

    def _make(self, path: Path) -> None:
        """Make the directories of a mailbox, `tmp` last: where it is, the others are."""
        missing = [path]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
            flush_directory(folder.parent)
        for name in ("cur", "new", "tmp"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
        flush_directory(path)

    def _kept_before(self, box: Box, delivery_id: DeliveryId, now: float, lock_seconds: float) -> bool:
        if not box.path.exists():
            return False
        with box.locked(lock_seconds):
            box.delivered.refresh(now, partial(self._ids, box.path, now))
            return self._was_kept(box, delivery_id, suspect=bool(drafts_of(box.path / "tmp", delivery_id)))

    def _was_kept(self, box: Box, delivery_id: DeliveryId, *, suspect: bool) -> bool:
        """`suspect`: an earlier `keep` left a draft behind, so it may have been cut off after its link."""
        match box.delivered.knows(delivery_id):
            case Knowledge.KEPT:
                return True
            case Knowledge.NEVER if not suspect:
                return False
            case _:
                return any(found.name.delivery_id == delivery_id for found in list_files(box.path, folders=True))

    def _check_quota(self, box: Box, owner: str, size_bytes: int, quota_bytes: int, now: float) -> None:
        if box.used_bytes is None or now - box.used_at > USED_SECONDS or box.used_bytes + size_bytes > quota_bytes:
            box.used_bytes, box.used_at = used_bytes(box.path), now
        if box.used_bytes + size_bytes > quota_bytes:
            raise MailboxFull(f"{owner}: {box.used_bytes} of {quota_bytes} octets used")

    def _ids(self, path: Path, now: float) -> Iterator[str]:
        oldest = (now - self._remember_seconds) * 1_000_000
        for found in list_files(path, folders=True):
            if found.name.delivery_id is not None and (found.name.micros or 0) > oldest:
                yield found.name.delivery_id

    def _sweep(self, box: Box, now: float) -> None:
        """Remove old debris of `tmp`; what had been linked is remembered first. Once per mailbox and process."""
        box.swept = True
        with os.scandir(box.path / "tmp") as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if now - status.st_mtime < DEBRIS_SECONDS:
                        continue
                    delivery_id = parse_name(entry.name.rpartition(".")[0].rpartition(".")[0]).delivery_id
                    if status.st_nlink > 1 and delivery_id and box.delivered.knows(delivery_id) is not Knowledge.KEPT:
                        box.delivered.add(delivery_id)
                    os.unlink(entry.path)

    # Removing

    def _expunge(self, owner: str, uids: frozenset[str], lock_seconds: float) -> None:
        box = self._boxes.of(owner)
        now = self._clock()
        going = [found for found in list_files(box.path) if found.name.uid in uids]
        if not going:
            return
        with box.locked(lock_seconds):
            box.delivered.refresh(now, partial(self._ids, box.path, now))
            oldest = (now - self._remember_seconds) * 1_000_000
            ids = {f.name.delivery_id for f in going if f.name.delivery_id and (f.name.micros or 0) > oldest}
            if ids:
                box.delivered.expunging(sorted(ids))
            box.used_bytes = None
            change_files(box.path, going, lambda found: os.unlink(found.path))
        self._flush_both(box.path)
