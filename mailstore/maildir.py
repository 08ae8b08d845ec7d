"""Mailboxes as Maildirs that Dovecot reads: one directory per owner, one file per message, each kept exactly once.

In charge of what is on disk and of its order: content to `tmp`, flushed; link into `new`; the delivery id to the
journal; `tmp` unlinked; `new` flushed. Whichever of these a crash cuts off, a second `keep` of the id finds its
traces (the journal line, or the file in `tmp`) and ends with one message. The mailbox lock (`eilpost-lock`) orders the
processes of eilpost; Dovecot needs none, since nothing here trusts a listing to stay true. Content is stored byte for
byte. Never decides who may read. docs/mailboxes.md is for people. Next: `mailstore/pop3/server.py`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from mail.message import DeliveryId
from mail.telemetry import MAILBOX_APPEND
from mailstore.delivered import Delivered, Knowledge, boot_id
from mailstore.flush import SharedFlush, flush_directory
from mailstore.listing import Found, as_wire, drafts_of, list_files
from mailstore.mailboxes import Kept, MailboxFull, MailboxUnavailable
from mailstore.names import message_name, owner_directory, parse_name, with_seen

log = structlog.get_logger()
_T = TypeVar("_T")

WRITERS = 16  # threads; each waits for the disk most of the time
READERS = 4
LOCK_SECONDS = 10.0
DEBRIS_SECONDS = 36 * 3600.0  # what the Maildir document and Dovecot say
USED_SECONDS = 60.0  # how long a sum of sizes is believed; a message is never refused on an old sum
BOXES_MAX = 1024
IDS_MAX = 100_000  # delivery ids in memory, all mailboxes together (about 12 MB)
CHECK_EVERY = 256  # calls between two counts of those ids
PLACES_MAX = 100_000  # file names in memory for readers (about 20 MB)


@dataclass(slots=True)
class _Box:
    """What this process remembers of one mailbox. All of it may be forgotten at any time."""

    path: Path
    delivered: Delivered
    flush_new: SharedFlush
    lock: threading.Lock = field(default_factory=threading.Lock)
    used_bytes: int | None = None
    used_at: float = 0.0
    swept: bool = False


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
        self._remember_seconds = remember.total_seconds()
        self._clock = clock
        self._boot = boot_id()
        self._process = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._counter = 0
        self._calls = 0
        self._lock = threading.Lock()
        self._boxes: OrderedDict[str, _Box] = OrderedDict()
        self._places: OrderedDict[str, dict[str, str]] = OrderedDict()
        self._writers = ThreadPoolExecutor(WRITERS, "maildir-write")
        self._readers = ThreadPoolExecutor(READERS, "maildir-read")

    # The port: each call is one job of a bounded pool of threads.

    async def keep(self, owner: str, delivery_id: DeliveryId, content: bytes, quota_bytes: int | None = None) -> bool:
        begun = time.perf_counter()
        new = await self._in(self._writers, partial(self.keep_now, owner, delivery_id, content, quota_bytes))
        MAILBOX_APPEND.observe(time.perf_counter() - begun)
        return new

    async def messages(self, owner: str) -> Sequence[Kept]:
        return await self._in(self._readers, partial(self._messages, owner))

    async def read(self, owner: str, uid: str, start: int = 0, limit_bytes: int | None = None) -> bytes:
        return await self._in(self._readers, partial(self._read, owner, uid, start, limit_bytes))

    async def expunge(self, owner: str, uids: Collection[str]) -> None:
        await self._in(self._writers, partial(self._expunge, owner, frozenset(uids)))

    async def mark_seen(self, owner: str, uids: Collection[str]) -> None:
        await self._in(self._writers, partial(self._mark_seen, owner, frozenset(uids)))

    async def used_bytes(self, owner: str) -> int:
        return await self._in(self._readers, lambda: self._sum(self._path(owner)))

    async def _in(self, pool: ThreadPoolExecutor, job: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, job)
        except OSError as error:
            raise MailboxUnavailable(f"{error.filename or self._root}: {error.strerror or error}") from error

    # Keeping

    def keep_now(self, owner: str, delivery_id: DeliveryId, content: bytes, quota_bytes: int | None) -> bool:
        """`keep`, in the calling thread. Raises OSError where the port raises MailboxUnavailable."""
        box = self._box(owner)
        now = self._clock()
        wire_bytes = len(content) + content.count(b"\n") - content.count(b"\r\n")
        name = message_name(int(now * 1_000_000), delivery_id, self._hostname, len(content), wire_bytes)
        if quota_bytes is not None and len(content) > quota_bytes:
            # Kept before the quota shrank? Then it is no refusal.
            if self._kept_before(box, delivery_id, now):
                self._flush_both(box.path)
                return False
            raise MailboxFull(f"{owner}: larger than the quota")
        draft = box.path / "tmp" / f"{name}.{self._process}.{self._next()}"
        self._write(box, draft, content)  # 1: the content is on the disk
        witness = False
        try:
            with self._locked(box):
                box.delivered.refresh(now, partial(self._ids, box.path, now))
                if not box.swept:
                    self._sweep(box, now)
                drafts = [other for other in drafts_of(box.path / "tmp", delivery_id) if other != draft.name]
                new = not self._was_kept(box, delivery_id, suspect=bool(drafts))
                if new:
                    if quota_bytes is not None:
                        self._check_quota(box, owner, len(content), quota_bytes, now)
                    self._link(box.path, draft, name)  # 2: it is in the mailbox
                    if box.used_bytes is not None:
                        box.used_bytes += len(content)
                if box.delivered.knows(delivery_id) is not Knowledge.KEPT:
                    try:
                        box.delivered.add(delivery_id)  # 3: its id is known
                    except OSError as error:
                        if not new:
                            raise
                        # It is kept, but only the name in `new` and the draft say so: leave the draft as a witness.
                        log.warning("mailbox journal not written", owner=owner, reason=error.strerror)
                        witness = True
        except (OSError, MailboxFull):
            with suppress(OSError):
                os.unlink(draft)
            raise
        if not witness:
            for debris in [draft.name, *drafts]:
                with suppress(OSError):
                    os.unlink(draft.parent / debris)  # 4: only the name in `new` is left
        if new:
            box.flush_new.flush()  # 5: that name is on the disk
        else:
            self._flush_both(box.path)  # the first `keep` may have died, or failed, before its flush
        return new

    def _write(self, box: _Box, draft: Path, content: bytes) -> None:
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

    def _kept_before(self, box: _Box, delivery_id: DeliveryId, now: float) -> bool:
        if not box.path.exists():
            return False
        with self._locked(box):
            box.delivered.refresh(now, partial(self._ids, box.path, now))
            return self._was_kept(box, delivery_id, suspect=bool(drafts_of(box.path / "tmp", delivery_id)))

    def _was_kept(self, box: _Box, delivery_id: DeliveryId, *, suspect: bool) -> bool:
        """`suspect`: an earlier `keep` left a draft behind, so it may have been cut off after its link."""
        match box.delivered.knows(delivery_id):
            case Knowledge.KEPT:
                return True
            case Knowledge.NEVER if not suspect:
                return False
            case _:
                return any(found.name.delivery_id == delivery_id for found in list_files(box.path, folders=True))

    def _check_quota(self, box: _Box, owner: str, size_bytes: int, quota_bytes: int, now: float) -> None:
        if box.used_bytes is None or now - box.used_at > USED_SECONDS or box.used_bytes + size_bytes > quota_bytes:
            box.used_bytes, box.used_at = self._sum(box.path), now
        if box.used_bytes + size_bytes > quota_bytes:
            raise MailboxFull(f"{owner}: {box.used_bytes} of {quota_bytes} octets used")

    def _ids(self, path: Path, now: float) -> Iterator[str]:
        oldest = (now - self._remember_seconds) * 1_000_000
        for found in list_files(path, folders=True):
            if found.name.delivery_id is not None and (found.name.micros or 0) > oldest:
                yield found.name.delivery_id

    def _sweep(self, box: _Box, now: float) -> None:
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

    # Reading and changing

    def _messages(self, owner: str) -> list[Kept]:
        path = self._path(owner)
        # `new` before `cur`: a message that moves meanwhile is seen twice, never missed; the later sight counts.
        places = {found.name.uid: found for found in list_files(path)}
        kept: list[Kept] = []
        for uid, found in places.items():
            name, micros, size = found.name, found.name.micros, found.name.size_bytes
            if micros is None or size is None:
                try:
                    micros = micros if micros is not None else os.stat(found.path).st_mtime_ns // 1000
                    size = size if size is not None else len(as_wire(found))
                except OSError:
                    continue
            kept.append(Kept(uid, size, datetime.fromtimestamp(micros / 1_000_000, UTC), name.seen))
        kept.sort(key=lambda message: (message.received, message.uid))
        with self._lock:
            # Of each only what finds it again: a large mailbox has many.
            self._places[owner] = {uid: f"{found.folder.name}/{found.file}" for uid, found in places.items()}
            self._places.move_to_end(owner)
            while len(self._places) > 1 and sum(map(len, self._places.values())) > PLACES_MAX:
                self._places.popitem(last=False)
        return kept

    def _read(self, owner: str, uid: str, start: int, limit_bytes: int | None) -> bytes:
        for _attempt in range(2):
            with self._lock:
                place = self._places.get(owner, {}).get(uid)
            if place is not None:
                folder, _slash, file_name = place.partition("/")
                found = Found(self._path(owner) / folder, file_name, parse_name(file_name))
                try:
                    if found.name.delivery_id is None:
                        end = None if limit_bytes is None else start + limit_bytes
                        return as_wire(found)[start:end]
                    with open(found.path, "rb") as file:
                        file.seek(start)
                        return file.read(-1 if limit_bytes is None else limit_bytes)
                except FileNotFoundError:
                    pass  # moved or flagged meanwhile: look where it is now
            self._messages(owner)
        raise KeyError(uid)

    def _expunge(self, owner: str, uids: frozenset[str]) -> None:
        box = self._box(owner)
        now = self._clock()
        going = [found for found in list_files(box.path) if found.name.uid in uids]
        if not going:
            return
        with self._locked(box):
            box.delivered.refresh(now, partial(self._ids, box.path, now))
            oldest = (now - self._remember_seconds) * 1_000_000
            ids = {f.name.delivery_id for f in going if f.name.delivery_id and (f.name.micros or 0) > oldest}
            if ids:
                box.delivered.expunging(sorted(ids))
            box.used_bytes = None
            self._change(box.path, going, lambda found: os.unlink(found.path))
        self._flush_both(box.path)

    def _mark_seen(self, owner: str, uids: frozenset[str]) -> None:
        path = self._path(owner)
        cur = path / "cur"
        flagged = [found for found in list_files(path) if found.name.uid in uids and not found.name.seen]
        self._change(path, flagged, lambda found: os.rename(found.path, cur / with_seen(found.file)))

    def _change(self, path: Path, files: list[Found], change: Callable[[Found], None]) -> None:
        """Change files that Dovecot may rename at the same time: those are looked for again; gone is no error."""
        for _round in range(3):
            missed: set[str] = set()
            for found in files:
                try:
                    change(found)
                except FileNotFoundError:
                    missed.add(found.name.uid)
            if not missed:
                return
            files = [found for found in list_files(path) if found.name.uid in missed]

    def _sum(self, path: Path) -> int:
        total = 0
        for found in list_files(path, folders=True):
            size = found.name.size_bytes
            if size is None:
                with suppress(OSError):
                    size = os.stat(found.path).st_size
            total += size or 0
        return total

    # What this process remembers, and the lock

    def _path(self, owner: str) -> Path:
        return self._root / owner_directory(owner)

    def _next(self) -> int:
        with self._lock:
            self._counter += 1
            return self._counter

    def _box(self, owner: str) -> _Box:
        with self._lock:
            box = self._boxes.get(owner)
            if box is None:
                path = self._path(owner)
                box = _Box(path, Delivered(path, self._boot, self._remember_seconds), SharedFlush(path / "new"))
                self._boxes[owner] = box
            self._boxes.move_to_end(owner)
            self._calls += 1
            if len(self._boxes) > BOXES_MAX or self._calls % CHECK_EVERY == 0:
                self._forget()
            return box

    def _forget(self) -> None:
        """Let go of the mailboxes longest unused. One in use is no harm: the lock on the disk orders the two."""
        ids = sum(box.delivered.size for box in self._boxes.values())
        while len(self._boxes) > BOXES_MAX or (len(self._boxes) > 1 and ids > IDS_MAX):
            _owner, box = self._boxes.popitem(last=False)
            ids -= box.delivered.size

    @contextmanager
    def _locked(self, box: _Box) -> Iterator[None]:
        """The mailbox lock among threads and processes of eilpost. Raises OSError when it cannot be had in time."""
        deadline = time.monotonic() + LOCK_SECONDS
        path = box.path / "eilpost-lock"
        if not box.lock.acquire(timeout=LOCK_SECONDS):
            raise TimeoutError(11, "the mailbox lock is held for too long", str(path))
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                while True:
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() > deadline:
                            raise TimeoutError(11, "the mailbox lock is held for too long", str(path)) from None
                        time.sleep(0.002)
                yield
            finally:
                os.close(descriptor)  # gives the lock back
        finally:
            box.lock.release()
