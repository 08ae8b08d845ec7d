"""Contents kept at the same time share one write (a *pack*): group commit, for every spool that pays for each write.

Here is what a pack is, whoever writes it: which contents go together, what they are called (`HOUR/ID@OFFSET`; how long
a content is stands in `Spooled`), and how damage is told (`digest_of`). Nothing here touches a disk or a network. A
failed write fails all who wait for it and nobody else; who stops waiting in time is not written.
Next: `mail/spool/disk.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import cast

from mail.message import Spooled, queue_id_time
from mail.queueid import new_queue_id
from mail.spool import SpoolDamaged
from mail.telemetry.spool import SPOOL_ERRORS

LARGE_BYTES = 1 << 20  # from here a content is written by itself
PACK_BYTES = 8 << 20  # what one pack holds at most, so that nobody waits long for a stranger's bytes

HOUR_FORMAT = "%Y%m%d%H"  # UTC
_NAME = re.compile(r"([0-9]{10})/([0-9A-Z]{26})@([0-9]{1,12})\Z")
_HOUR = re.compile(r"[0-9]{10}\Z")

Write = Callable[[Sequence[bytes]], Awaitable[list[Spooled]]]


@dataclass(frozen=True, slots=True)
class PackName:
    """Where a pack lies: unique by itself, in the hour it was made."""

    hour: str
    id: str

    def __str__(self) -> str:
        return f"{self.hour}/{self.id}"


def new_pack_name() -> PackName:
    queue_id = new_queue_id()
    return PackName(queue_id_time(queue_id).strftime(HOUR_FORMAT), str(queue_id))


def place_of(spooled: Spooled) -> tuple[PackName, int]:
    """The pack and the offset in it. A name that is none never reaches a disk or a store. Raises SpoolDamaged."""
    match = _NAME.match(spooled.name)
    if match is None:
        SPOOL_ERRORS.labels("damaged").inc()
        raise SpoolDamaged(f"{spooled.name!r} is not a name of the spool: the queue line that holds it is damaged")
    return PackName(match[1], match[2]), int(match[3])


def hour_begins(name: str) -> datetime | None:
    """When the hour of this name began; None for what is no hour of ours."""
    if not _HOUR.match(name):
        return None
    try:
        return datetime.strptime(name, HOUR_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None


def placed(pack: PackName, contents: Sequence[bytes]) -> list[Spooled]:
    """What each content is called that was written into `pack`, one after the other."""
    kept, offset = [], 0
    for content in contents:
        kept.append(Spooled(f"{pack}@{offset}", len(content), digest_of(content)))
        offset += len(content)
    return kept


def digest_of(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class _Waiting:
    content: bytes
    kept: asyncio.Future[Spooled]


class Packs:
    """Gathers what is kept at the same time and calls `write` with it, at most `writers` at once. What comes while all
    of them are busy is the next pack.
    """

    def __init__(self, write: Write, writers: int = 1) -> None:
        self._write = write
        self._most = writers
        self._waiting: list[_Waiting] = []
        self._writers: set[asyncio.Task[None]] = set()
        self._is_starting = False

    async def keep(self, content: bytes) -> Spooled:
        waiting = _Waiting(content, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._start_writer()
        return await waiting.kept

    async def finish(self) -> None:
        """Return when nothing is being written any more."""
        while self._writers:
            await asyncio.wait(self._writers)

    def _start_writer(self) -> None:
        """One writer at a time is on its way: all that is kept in one turn of the loop is one pack."""
        if not self._is_starting and len(self._writers) < self._most:
            self._is_starting = True
            self._writers.add(asyncio.create_task(self._write_packs(), name="spool-writer"))

    async def _write_packs(self) -> None:
        """Write what waits, pack after pack, until nothing does."""
        self._is_starting = False
        try:
            for pack in iter(self._take_pack, []):
                if self._waiting:
                    self._start_writer()
                await self._write_pack(pack)
        finally:  # in the same turn in which nothing waited, so that what is kept next starts another
            self._writers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _write_pack(self, pack: list[_Waiting]) -> None:
        try:
            names = await self._write([waiting.content for waiting in pack])
        except Exception as error:
            for waiting in _still(pack):
                waiting.kept.set_exception(error)
            return
        for waiting, spooled in zip(pack, names, strict=True):
            if not waiting.kept.done():  # its caller may have gone
                waiting.kept.set_result(spooled)

    def _take_pack(self) -> list[_Waiting]:
        size = 0
        waiting = list(_still(self._waiting))
        for number, each in enumerate(waiting):
            size += len(each.content)
            if size > PACK_BYTES:
                pack, self._waiting = waiting[:number], waiting[number:]
                return pack
        self._waiting = []
        return waiting


def _still(pack: Sequence[_Waiting]) -> Iterator[_Waiting]:
    """Those whose caller has not gone."""
    return (waiting for waiting in pack if not waiting.kept.done())
