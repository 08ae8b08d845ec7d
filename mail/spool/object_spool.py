"""The spool in an object store (S3 and what speaks like it, Google's, Azure's), shared by all processes of a cluster.

Durable when the store has confirmed the one PUT that carries the content; never multipart, whose debris no listing
shows. Contents kept at the same time share an object (`mail/spool/group_commit.py`), a large one has its own. Objects
are
called `PREFIX/HOUR/ID`, unique by themselves: not every store can refuse to overwrite. What is asked of the store is
bounded in number, in bytes and in time: a store that does not answer is SpoolUnavailable within `TIME_LIMIT_SECONDS`,
and more only for what is large.
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
from mail.spool.limiter import Limiter
from mail.spool.object_store import describe_error
from mail.telemetry.spool import READ_DURATION, SPOOL_BYTES, SPOOL_ERRORS, SWEEP_DURATION, WRITE_DURATION

if TYPE_CHECKING:
    from obstore import ListStream, ObjectMeta
    from obstore.store import ObjectStore

    _Listing = ListStream[Sequence[ObjectMeta]]

TIME_LIMIT_SECONDS = 15.0  # of a request, its retries and its wait for room; shorter than log.append_timeout
MIN_BYTES_PER_SECOND = 1 << 20  # per second: a slower transfer is given up
REQUESTS_IN_FLIGHT_MAX = 32  # under way at the same time
BYTES_IN_FLIGHT_MAX = 64 << 20
WRITERS = 4  # packs under way at the same time: a PUT takes tens of milliseconds however small it is
DELETE_BATCH_MAX = 1000  # what S3 takes in one request
_IN_THREAD_BYTES = 256 << 10  # from here, digests and copies leave the event loop alone

T = TypeVar("T")


class _ObjectTooShort(Exception):
    """The object is shorter than what was asked of it."""

    def __init__(self, size: int) -> None:
        self.size = size


class ObjectSpool:
    """`url` names the spool in what is said about it."""

    def __init__(self, store: ObjectStore, url: str, *, time_limit_seconds: float = TIME_LIMIT_SECONDS) -> None:
        self._store = store
        self._url = url
        self._time_limit_seconds = time_limit_seconds
        self._group_commit = GroupCommit(self._write, WRITERS)
        self._limiter = Limiter(REQUESTS_IN_FLIGHT_MAX, BYTES_IN_FLIGHT_MAX)
        self._requests_in_flight = 0
        self._idle = asyncio.Event()
        self._is_closed = False
        self._written_bytes = SPOOL_BYTES.labels("written")
        self._read_bytes = SPOOL_BYTES.labels("read")

    async def start(self) -> None:
        """Write, read, list and delete a small object: what will be needed later, said now."""
        content = b"eilpost looks whether it can write here"
        try:
            spooled = (await self._write([content]))[0]
            await self.read(spooled)
            name, _ = location_of(spooled)
            await self._next_page(self._list(name.hour))
            await self._delete([str(name)])
        except (SpoolUnavailable, SpoolDamaged) as error:
            raise SpoolUnavailable(f"spool.url: {error}") from error

    async def put(self, content: bytes) -> Spooled:
        with WRITE_DURATION.time():
            if len(content) >= LARGE_BYTES:
                return (await self._write([content]))[0]
            try:  # a pack has its own time; this is for those who wait behind one
                async with asyncio.timeout(self._time_limit_seconds):
                    return await self._group_commit.put(content)
            except TimeoutError as error:
                raise self._unavailable("write", error) from error

    async def read(self, spooled: Spooled, limit_bytes: int | None = None) -> bytes:
        with READ_DURATION.time():
            return await self._read_whole(spooled, limit_bytes)

    async def _read_whole(self, spooled: Spooled, limit_bytes: int | None) -> bytes:
        batch, offset = location_of(spooled)
        size = spooled.size_bytes if limit_bytes is None else min(limit_bytes, spooled.size_bytes)
        try:
            content = await self._get(batch, offset, size)
        except FileNotFoundError as error:
            await self._next_page(self._list(str(batch)))  # a store that is not there, or keeps us out, says so now
            raise self._damaged(batch, "is missing") from error
        except _ObjectTooShort as error:
            raise self._damaged(batch, f"ends at {error.size}, before {offset + size}") from error
        if limit_bytes is None and await _run_in_thread_if_large(size, lambda: digest_of(content)) != spooled.digest:
            raise self._damaged(batch, f"does not hold what was kept at {offset}")
        self._read_bytes.inc(size)
        return content

    async def sweep(self, older_than: datetime) -> int:
        """By the hours in the names, and within the last of them by the time in the id: it is our clock that made both,
        and an object that was put back keeps its age.
        """
        with SWEEP_DURATION.time():
            return await self._sweep(older_than)

    async def _sweep(self, older_than: datetime) -> int:
        result = await self._request("list", 0, lambda: obstore.list_with_delimiter_async(self._store))
        removed = 0
        for hour in sorted(result["common_prefixes"]):
            start = hour_start(hour)
            if start is None:
                continue  # not ours
            if start >= older_than:
                break
            listing = self._list(hour)
            while page := await self._next_page(listing):
                if old := [path for path in page if _is_older(path, older_than)]:
                    removed += await self._delete(old)
        return removed

    async def free_bytes(self) -> int | None:
        return None

    async def close(self) -> None:
        """Finish what is being written. Idempotent."""
        await self._group_commit.drain()
        self._is_closed = True
        while self._requests_in_flight:
            self._idle.clear()
            await self._idle.wait()

    async def _write(self, contents: Sequence[bytes]) -> list[Spooled]:
        name = new_batch_name()
        size = sum(map(len, contents))

        async def put() -> None:
            content = (
                contents[0] if len(contents) == 1 else await _run_in_thread_if_large(size, lambda: b"".join(contents))
            )
            await obstore.put_async(self._store, str(name), content, use_multipart=False)

        await self._request("write", size, put)
        self._written_bytes.inc(size)
        return await _run_in_thread_if_large(size, lambda: spooled_contents(name, contents))

    # What else is asked of the store.

    async def _get(self, name: BatchName, offset: int, size: int) -> bytes:
        """Raises FileNotFoundError, _Ends, SpoolUnavailable."""
        path = str(name)

        async def get() -> bytes:
            if size:
                try:
                    content = await obstore.get_range_async(self._store, path, start=offset, length=size)
                except BaseError:
                    # Every provider has its own words for a range beyond the end; the object's size has none.
                    object_size = (await obstore.head_async(self._store, path))["size"]
                    if object_size < offset + size:
                        raise _ObjectTooShort(object_size) from None
                    raise
                if len(content) < size:
                    raise _ObjectTooShort(offset + len(content))
                return bytes(content)
            await obstore.head_async(self._store, path)  # no store has a range of no bytes
            return b""

        return await self._request("read", size, get, not_found_ok=True)

    def _list(self, prefix: str) -> _Listing:
        """In pages of as many as are deleted at once: an hour may hold hundreds of thousands."""
        return obstore.list(self._store, prefix, chunk_size=DELETE_BATCH_MAX)

    async def _next_page(self, listing: _Listing) -> list[str]:
        """The next paths; none when there are no more."""

        async def next_page() -> Sequence[ObjectMeta]:
            try:
                return await anext(listing)
            except StopAsyncIteration:
                return ()

        return [each["path"] for each in await self._request("list", 0, next_page)]

    async def _delete(self, paths: Sequence[str]) -> int:
        try:
            await self._request(
                "sweep",
                len(paths) * 1024,
                lambda: obstore.delete_async(self._store, paths),
                not_found_ok=True,
            )
        except FileNotFoundError:  # another process was faster; what is left goes next time
            return 0
        return len(paths)

    async def _request(
        self, verb: str, size: int, work: Callable[[], Awaitable[T]], *, not_found_ok: bool = False
    ) -> T:
        """Do it within the bounds there are. Raises SpoolUnavailable; FileNotFoundError where that is an answer."""
        if self._is_closed:
            raise SpoolUnavailable("the spool is closed")
        try:
            async with self._count_request(), asyncio.timeout(self._timeout_seconds(size)), self._limiter.acquire(size):
                return await work()
        except (BaseError, OSError, ValueError) as error:  # a TimeoutError is an OSError
            if not_found_ok and isinstance(error, FileNotFoundError):
                raise
            raise self._unavailable(verb, error) from error

    @asynccontextmanager
    async def _count_request(self) -> AsyncIterator[None]:
        self._requests_in_flight += 1
        try:
            yield
        finally:
            self._requests_in_flight -= 1
            self._idle.set()

    def _timeout_seconds(self, size: int) -> float:
        return self._time_limit_seconds + size / MIN_BYTES_PER_SECOND

    def _unavailable(self, verb: str, error: Exception) -> SpoolUnavailable:
        SPOOL_ERRORS.labels("unavailable").inc()
        return SpoolUnavailable(f"cannot {verb} the spool {self._url}: {describe_error(error)}")

    def _damaged(self, name: BatchName, what: str) -> SpoolDamaged:
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


async def _run_in_thread_if_large(size: int, work: Callable[[], T]) -> T:
    """Do it here when it is small, in a thread when it is not."""
    return work() if size < _IN_THREAD_BYTES else await asyncio.to_thread(work)
