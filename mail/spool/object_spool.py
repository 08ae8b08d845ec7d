"""Spool in an object store (S3, Google Cloud Storage, Azure Blob Storage), shared by all processes of a cluster.

Content is durable when the store confirms its PUT; there are no multipart uploads, as their leftovers are not listed.
Objects have unique names `PREFIX/HOUR/ID`, because not every store can refuse to overwrite; content stored concurrently
shares an object (`mail/spool/group_commit.py`). Requests are limited in number, bytes and time.
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

TIME_LIMIT_SECONDS = 15.0  # for a request with retries and its wait for the limiter; shorter than log.append_timeout
MIN_BYTES_PER_SECOND = 1 << 20  # a slower transfer is cancelled
REQUESTS_IN_FLIGHT_MAX = 32
BYTES_IN_FLIGHT_MAX = 64 << 20
WRITERS = 4  # concurrent batches: even a small PUT takes tens of milliseconds
DELETE_BATCH_MAX = 1000  # limit of S3 per request
_IN_THREAD_BYTES = 256 << 10  # digests and copies of this size or more run in a thread

T = TypeVar("T")


class _ObjectTooShort(Exception):
    """The object is shorter than the requested range."""

    def __init__(self, size: int) -> None:
        self.size = size


class ObjectSpool:
    """`url` names the spool in errors."""

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
        """Write, read, list and delete a small object, so that missing rights are found at start."""
        content = b"eilpost write test"
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
            try:  # limits the wait for earlier batches too
                async with asyncio.timeout(self._time_limit_seconds):
                    return await self._group_commit.put(content)
            except TimeoutError as error:
                raise self._unavailable("write", error) from error

    async def read(self, spooled: Spooled, limit_bytes: int | None = None) -> bytes:
        batch, offset = location_of(spooled)
        size = spooled.size_bytes if limit_bytes is None else min(limit_bytes, spooled.size_bytes)
        with READ_DURATION.time():
            content = await self._get(batch, offset, size)
            if limit_bytes is None and spooled.digest != await _run_in_thread_if_large(
                size, lambda: digest_of(content)
            ):
                raise self._damaged(batch, f"has a wrong checksum at offset {offset}")
        self._read_bytes.inc(size)
        return content

    async def sweep(self, older_than: datetime) -> int:
        """Delete by the hours in the names, and within the last hour by the time in the id, so that a restored object
        keeps its age.
        """
        removed = 0
        with SWEEP_DURATION.time():
            result = await self._request("list", 0, lambda: obstore.list_with_delimiter_async(self._store))
            for hour in sorted(result["common_prefixes"]):
                start = hour_start(hour)
                if start is None:
                    continue  # not a spool prefix
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
        """Wait for the writes in progress. Idempotent."""
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

    async def _get(self, batch: BatchName, offset: int, size: int) -> bytes:
        """A part of an object. Raises SpoolDamaged, SpoolUnavailable."""
        path = str(batch)

        async def get() -> bytes:
            if size:
                try:
                    content = await obstore.get_range_async(self._store, path, start=offset, length=size)
                except BaseError:
                    # Each provider reports a range beyond the end differently; compare with the object's size.
                    object_size = (await obstore.head_async(self._store, path))["size"]
                    if object_size < offset + size:
                        raise _ObjectTooShort(object_size) from None
                    raise
                if len(content) < size:
                    raise _ObjectTooShort(offset + len(content))
                return bytes(content)
            await obstore.head_async(self._store, path)  # an empty range is not valid HTTP
            return b""

        try:
            return await self._request("read", size, get, not_found_ok=True)
        except FileNotFoundError as error:
            await self._next_page(self._list(path))  # distinguishes a missing object from a missing bucket or right
            raise self._damaged(batch, "is missing") from error
        except _ObjectTooShort as error:
            raise self._damaged(batch, f"has {error.size} bytes instead of at least {offset + size}") from error

    def _list(self, prefix: str) -> _Listing:
        """List in pages of one delete request: an hour may contain hundreds of thousands of objects."""
        return obstore.list(self._store, prefix, chunk_size=DELETE_BATCH_MAX)

    async def _next_page(self, listing: _Listing) -> list[str]:
        """The next page of paths; empty at the end."""

        async def next_page() -> Sequence[ObjectMeta]:
            try:
                return await anext(listing)
            except StopAsyncIteration:
                return ()

        return [item["path"] for item in await self._request("list", 0, next_page)]

    async def _delete(self, paths: Sequence[str]) -> int:
        try:
            await self._request(
                "sweep", len(paths) * 1024, lambda: obstore.delete_async(self._store, paths), not_found_ok=True
            )
        except FileNotFoundError:  # another process deleted it; the rest is deleted by the next sweep
            return 0
        return len(paths)

    async def _request(
        self, verb: str, size: int, work: Callable[[], Awaitable[T]], *, not_found_ok: bool = False
    ) -> T:
        """Run a request within the limits. Raises SpoolUnavailable; FileNotFoundError if `not_found_ok`."""
        if self._is_closed:
            raise SpoolUnavailable("the spool is closed")
        try:
            timeout_seconds = self._time_limit_seconds + size / MIN_BYTES_PER_SECOND
            async with self._count_request(), asyncio.timeout(timeout_seconds), self._limiter.acquire(size):
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

    def _unavailable(self, verb: str, error: Exception) -> SpoolUnavailable:
        SPOOL_ERRORS.labels("unavailable").inc()
        return SpoolUnavailable(f"cannot {verb} the spool {self._url}: {describe_error(error)}")

    def _damaged(self, batch: BatchName, defect: str) -> SpoolDamaged:
        SPOOL_ERRORS.labels("damaged").inc()
        return SpoolDamaged(
            f"spool object {self._url}/{batch} {defect}: restore it from a backup or an older version; otherwise its "
            "mail expires in the queue"
        )


def _is_older(path: str, than: datetime) -> bool:
    _hour, _, name = path.partition("/")
    try:
        return queue_id_time(QueueId(name)) < than
    except ValueError:
        return False  # not a spool object


async def _run_in_thread_if_large(size: int, work: Callable[[], T]) -> T:
    """Run `work` directly when `size` is small, else in a thread."""
    return work() if size < _IN_THREAD_BYTES else await asyncio.to_thread(work)
