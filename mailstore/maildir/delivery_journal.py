"""Delivery journal of a mailbox: the delivery ids appended before, so that a second `append` changes nothing.

The file `eilpost-delivered` in the mailbox is shared by all processes that deliver there; access needs the mailbox
lock. Lines: `k ID` linked into `new`, `x ID` expunged by eilpost, `b BOOT SECONDS` first and after each boot;
`k` is not fsynced (kill -9 does not lose it; after a power failure the directories are listed once instead), `x` is
fsynced before the file is removed. Two files rotate, so an id is kept for one to two times `retention_seconds`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from enum import Enum, auto
from pathlib import Path

from mail.regular_file import open_regular

JOURNAL = "eilpost-delivered"
OLD_JOURNAL = "eilpost-delivered.old"


class JournalState(Enum):
    ABSENT = auto()  # not appended since boot, and not found in the directories at boot
    UNCERTAIN = auto()  # recorded before this boot: the directories must be searched
    RECORDED = auto()


def boot_id() -> str:
    """Identifier of the current boot; where the kernel has none, of this process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex


class DeliveryJournal:
    """Journal of one mailbox, read incrementally. Every method except `size` needs the mailbox lock."""

    def __init__(self, mailbox: Path, boot: str, retention_seconds: float) -> None:
        self._path = mailbox / JOURNAL
        self._old_path = mailbox / OLD_JOURNAL
        self._boot = boot
        self._retention_seconds = retention_seconds
        self._recorded: set[str] = set()
        self._uncertain: set[str] = set()
        self._inode = -1
        self._read_bytes = 0
        self._last_boot = ""
        self._started_at = 0.0
        self._refreshed_at = 0.0

    @property
    def size(self) -> int:
        """Number of ids in memory."""
        return len(self._recorded) + len(self._uncertain)

    def refresh(self, now: float, list_ids: Callable[[], Iterable[str]]) -> None:
        """Read what other processes wrote. `list_ids` lists the ids in the directories; called once per boot."""
        try:
            status = os.stat(self._path)
            inode, size = status.st_ino, status.st_size
        except FileNotFoundError:
            inode, size = -1, 0
        # After a day the files may have rotated twice and the inode number may have been reused.
        stale = now - self._refreshed_at > 86_400
        self._refreshed_at = now
        if inode != self._inode or size < self._read_bytes or inode == -1 or stale:
            self._reload(inode)
        elif size > self._read_bytes:
            self._read_lines(self._path, self._read_bytes)
        if self._inode != -1 and now - self._started_at > self._retention_seconds:
            os.replace(self._path, self._old_path)
            self._reload(-1)
        if self._inode == -1 or self._last_boot != self._boot:
            first = self._last_boot != self._boot
            ids = [i for i in list_ids() if i not in self._recorded] if first else []
            self._append([f"b {self._boot} {int(now)}", *(f"k {i}" for i in ids)])

    def lookup(self, delivery_id: str) -> JournalState:
        if delivery_id in self._recorded:
            return JournalState.RECORDED
        return JournalState.UNCERTAIN if delivery_id in self._uncertain else JournalState.ABSENT

    def record_append(self, delivery_id: str) -> None:
        """Record an id after its file was linked into `new`."""
        self._append([f"k {delivery_id}"])

    def record_expunge(self, delivery_ids: Iterable[str]) -> None:
        """Record ids before their files are removed; durable on return."""
        self._append([f"x {delivery_id}" for delivery_id in delivery_ids], flush=True)

    def _reload(self, inode: int) -> None:
        self._recorded.clear()
        self._uncertain.clear()
        self._last_boot, self._started_at, self._inode, self._read_bytes = "", 0.0, inode, 0
        self._read_lines(self._old_path, 0)
        self._started_at, self._read_bytes = 0.0, 0
        if inode != -1:
            self._read_lines(self._path, 0)

    def _read_lines(self, path: Path, start: int) -> None:
        try:
            with open(open_regular(path), "rb") as file:
                file.seek(start)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data.rfind(b"\n") + 1  # ignore a torn last line
        for line in data[:whole].decode("ascii", "replace").splitlines():
            kind, _space, rest = line.partition(" ")
            if kind == "k":
                if self._last_boot == self._boot:
                    self._recorded.add(rest)
                    self._uncertain.discard(rest)
                elif rest not in self._recorded:
                    self._uncertain.add(rest)
            elif kind == "x":
                self._recorded.add(rest)
                self._uncertain.discard(rest)
            elif kind == "b":
                boot, _space, seconds = rest.partition(" ")
                self._last_boot = boot
                if not self._started_at and seconds.isdigit():
                    self._started_at = float(seconds)
        self._read_bytes = start + whole

    def _append(self, lines: list[str], *, flush: bool = False) -> None:
        data = "".join(f"{line}\n" for line in lines).encode("ascii")
        descriptor = open_regular(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            # Append after the last complete line; a partial line of a killed writer is overwritten.
            size = os.fstat(descriptor).st_size
            start = min(self._read_bytes, size)
            try:
                os.ftruncate(descriptor, start)
                rest, offset = memoryview(data), start
                while rest:
                    written = os.pwrite(descriptor, rest, offset)
                    rest, offset = rest[written:], offset + written
            except OSError:
                os.ftruncate(descriptor, start)
                raise
            if flush:
                os.fsync(descriptor)
            self._inode = os.fstat(descriptor).st_ino
        finally:
            os.close(descriptor)
        self._read_lines(self._path, start)
