"""The spool in an object store (S3 and what speaks like it, Google's, Azure's), shared by all processes of a cluster.

Durable when the store has confirmed the one PUT that carries the content; never multipart, whose debris no listing
shows. Contents kept at the same time share an object (`mail/spool/packs.py`), a large one has its own. Objects are
called `PREFIX/HOUR/ID`, unique by themselves: not every store can refuse to overwrite. What is asked of the store is
bounded in number, in bytes and in time: a store that does not answer is SpoolUnavailable within `TIME_LIMIT_SECONDS`,
and more only for what is large. Next: `mail/spool/memory.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError

from mail.message import QueueId, Spooled, queue_id_time
from mail.spool import SpoolDamaged, SpoolUnavailable
from mail.spool.packs import (
    LARGE_BYTES,
    PackName,
    Packs,
    digest_of,
    hour_begins,
    new_pack_name,
    place_of,
    placed,
)
from mail.spool.room import Room
from mail.spool.stores import reason
from mail.telemetry.spool import READING, SPOOL_BYTES, SPOOL_ERRORS, SWEEPING, WRITING

if TYPE_CHECKING:
    from obstore import ListStream, ObjectMeta
    from obstore.store import ObjectStore

    _Listing = ListStream[Sequence[ObjectMeta]]

TIME_LIMIT_SECONDS = 15.0  # of a request, its retries and its wait for room; shorter than log.append_timeout
SLOWEST_BYTES = 1 << 20  # per second: a slower transfer is given up
REQUESTS = 32  # under way at the same time
BYTES_IN_FLIGHT = 64 << 20
WRITERS = 4  # packs under way at the same time: a PUT takes tens of milliseconds however small it is
DELETED_AT_ONCE = 1000  # what S3 takes in one request
_IN_THREAD_BYTES = 256 << 10  # from here, digests and copies leave the event loop alone

T = TypeVar("T")


class _Ends(Exception):
    """The object is shorter than what was asked of it."""

    def __init__(self, size: int) -> None:
        self.size = size


class ObjectSpool:
    """`url` names the spool in what is said about it."""

    def __init__(self, store: ObjectStore, url: str, *, time_limit_seconds: float = TIME_LIMIT_SECONDS) -> None:
        self._store = store
        self._url = url
        self._time_limit_seconds = time_limit_seconds
        self._packs = Packs(self._write, WRITERS)
        self._room = Room(REQUESTS, BYTES_IN_FLIGHT)
        self._under_way = 0
        self._all_done = asyncio.Event()
        self._is_closed = False
        self._written = SPOOL_BYTES.labels("written")
        self._read = SPOOL_BYTES.labels("read")

    async def start(self) -> None:
        """Write, read, list and delete a small object: what will be needed later, said now."""
        content = b"eilpost looks whether it can write here"
        try:
            spooled = (await self._write([content]))[0]
            await self.read(spooled)
            name, _ = place_of(spooled)
            await self._page(self._listing(name.hour))
            await self._delete([str(name)])
        except (SpoolUnavailable, SpoolDamaged) as error:
            raise SpoolUnavailable(f"spool.url: {error}") from error

    async def keep(self, content: bytes) -> Spooled:
        with WRITING.time():
            if len(content) >= LARGE_BYTES:
                return (await self._write([content]))[0]
            try:  # a pack has its own time; this is for those who wait behind one
                async with asyncio.timeout(self._time_limit_seconds):
                    return await self._packs.keep(content)
            except TimeoutError as error:
                raise self._unavailable("write", error) from error

    async def read(self, spooled: Spooled, limit_bytes: int | None = None) -> bytes:
        with READING.time():
            return await self._read_whole(spooled, limit_bytes)

    async def _read_whole(self, spooled: Spooled, limit_bytes: int | None) -> bytes:
        pack, offset = place_of(spooled)
        size = spooled.size_bytes if limit_bytes is None else min(limit_bytes, spooled.size_bytes)
        try:
            content = await self._get(pack, offset, size)
        except FileNotFoundError as error:
            await self._page(self._listing(str(pack)))  # a store that is not there, or keeps us out, says so now
            raise self._damaged(pack, "is missing") from error
        except _Ends as error:
            raise self._damaged(pack, f"ends at {error.size}, before {offset + size}") from error
        if limit_bytes is None and await _off_the_loop(size, lambda: digest_of(content)) != spooled.digest:
            raise self._damaged(pack, f"does not hold what was kept at {offset}")
        self._read.inc(size)
        return content

    async def sweep(self, older_than: datetime) -> int:
        """By the hours in the names, and within the last of them by the time in the id: it is our clock that made both,
        and an object that was put back keeps its age.
        """
        with SWEEPING.time():
            return await self._sweep(older_than)

    async def _sweep(self, older_than: datetime) -> int:
        found = await self._ask("list", 0, lambda: obstore.list_with_delimiter_async(self._store))
        removed = 0
        for hour in sorted(found["common_prefixes"]):
            begins = hour_begins(hour)
            if begins is None:
                continue  # not ours
            if begins >= older_than:
                break
            listing = self._listing(hour)
            while page := await self._page(listing):
                if old := [path for path in page if _is_older(path, older_than)]:
                    removed += await self._delete(old)
        return removed

    async def free_bytes(self) -> int | None:
        return None

    async def close(self) -> None:
        """Finish what is being written. Idempotent."""
        await self._packs.finish()
        self._is_closed = True
        while self._under_way:
            self._all_done.clear()
            await self._all_done.wait()

    async def _write(self, contents: Sequence[bytes]) -> list[Spooled]:
        name = new_pack_name()
        size = sum(map(len, contents))

        async def put() -> None:
            content = contents[0] if len(contents) == 1 else await _off_the_loop(size, lambda: b"".join(contents))
            await obstore.put_async(self._store, str(name), content, use_multipart=False)

        await self._ask("write", size, put)
        self._written.inc(size)
        return await _off_the_loop(size, lambda: placed(name, contents))

    # What else is asked of the store.

    async def _get(self, name: PackName, offset: int, size: int) -> bytes:
        """Raises FileNotFoundError, _Ends, SpoolUnavailable."""
        path = str(name)

        async def get() -> bytes:
            if size:
                try:
                    content = await obstore.get_range_async(self._store, path, start=offset, length=size)
                except BaseError:
                    # Every provider has its own words for a range beyond the end; the object's size has none.
                    ends = (await obstore.head_async(self._store, path))["size"]
                    if ends < offset + size:
                        raise _Ends(ends) from None
                    raise
                if len(content) < size:
                    raise _Ends(offset + len(content))
                return bytes(content)
            await obstore.head_async(self._store, path)  # no store has a range of no bytes
            return b""

        return await self._ask("read", size, get, missing_is_an_answer=True)

    def _listing(self, below: str) -> _Listing:
        """In pages of as many as are deleted at once: an hour may hold hundreds of thousands."""
        return obstore.list(self._store, below, chunk_size=DELETED_AT_ONCE)

    async def _page(self, listing: _Listing) -> list[str]:
        """The next paths; none when there are no more."""

        async def page() -> Sequence[ObjectMeta]:
            try:
                return await anext(listing)
            except StopAsyncIteration:
                return ()

        return [each["path"] for each in await self._ask("list", 0, page)]

    async def _delete(self, paths: Sequence[str]) -> int:
        try:
            await self._ask(
                "sweep",
                len(paths) * 1024,
                lambda: obstore.delete_async(self._store, paths),
                missing_is_an_answer=True,
            )
        except FileNotFoundError:  # another process was faster; what is left goes next time
            return 0
        return len(paths)

    async def _ask(
        self, verb: str, size: int, work: Callable[[], Awaitable[T]], *, missing_is_an_answer: bool = False
    ) -> T:
        """Do it within the bounds there are. Raises SpoolUnavailable; FileNotFoundError where that is an answer."""
        if self._is_closed:
            raise SpoolUnavailable("the spool is closed")
        try:
            async with self._counted(), asyncio.timeout(self._seconds_for(size)), self._room.take(size):
                return await work()
        except (BaseError, OSError, ValueError) as error:  # a TimeoutError is an OSError
            if missing_is_an_answer and isinstance(error, FileNotFoundError):
                raise
            raise self._unavailable(verb, error) from error

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._all_done.set()

    def _seconds_for(self, size: int) -> float:
        return self._time_limit_seconds + size / SLOWEST_BYTES

    def _unavailable(self, verb: str, error: Exception) -> SpoolUnavailable:
        SPOOL_ERRORS.labels("unavailable").inc()
        return SpoolUnavailable(f"cannot {verb} the spool {self._url}: {reason(error)}")

    def _damaged(self, name: PackName, what: str) -> SpoolDamaged:
        SPOOL_ERRORS.labels("damaged").inc()
        return SpoolDamaged(
            f"spool object {self._url}/{name} {what}: put it back from a backup or an older version of it, or the mail "
            "that needs it will expire"
        )


def _is_older(path: str, than: datetime) -> bool:
    _hour, _, name = path.partition("/")
    try:
        return queue_id_time(QueueId(name)) < than
    except ValueError:
        return False  # not ours


async def _off_the_loop(size: int, work: Callable[[], T]) -> T:
    """Do it here when it is small, in a thread when it is not."""
    return work() if size < _IN_THREAD_BYTES else await asyncio.to_thread(work)
