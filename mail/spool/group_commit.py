"""Group commit for spools: contents stored concurrently share one write (a *batch*). No I/O.

A content is named `HOUR/ID@OFFSET`; its size and digest are in `Spooled`. A failed write fails the callers of its batch
only; content of a cancelled caller is not written if its batch has not started.
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
from mail.queue_id import new_queue_id
from mail.spool import SpoolDamaged
from mail.telemetry.spool import SPOOL_ERRORS

LARGE_BYTES = 1 << 20  # content of this size or more is written alone
BATCH_MAX_BYTES = 8 << 20  # limits the time that a caller waits for the bytes of others

_HOUR_FORMAT = "%Y%m%d%H"  # UTC
_NAME = re.compile(r"([0-9]{10})/([0-9A-Z]{26})@([0-9]{1,12})\Z")
_HOUR = re.compile(r"[0-9]{10}\Z")

Write = Callable[[Sequence[bytes]], Awaitable[list[Spooled]]]


@dataclass(frozen=True, slots=True)
class BatchName:
    """The unique name of a batch: the hour of its creation and an id."""

    hour: str
    id: str

    def __str__(self) -> str:
        return f"{self.hour}/{self.id}"


def new_batch_name() -> BatchName:
    queue_id = new_queue_id()
    return BatchName(queue_id_time(queue_id).strftime(_HOUR_FORMAT), str(queue_id))


def location_of(spooled: Spooled) -> tuple[BatchName, int]:
    """The batch and the offset in it. Raises SpoolDamaged for an invalid name, before any I/O."""
    match = _NAME.match(spooled.name)
    if match is None:
        SPOOL_ERRORS.labels("damaged").inc()
        raise SpoolDamaged(f"{spooled.name!r} is not a spool name: the queue record that contains it is damaged")
    return BatchName(match[1], match[2]), int(match[3])


def hour_start(name: str) -> datetime | None:
    """The start of the hour with this name; None when the name is not an hour."""
    if not _HOUR.match(name):
        return None
    try:
        return datetime.strptime(name, _HOUR_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None


def spooled_contents(batch: BatchName, contents: Sequence[bytes]) -> list[Spooled]:
    """The locations of contents that were written to `batch` one after the other."""
    spooled, offset = [], 0
    for content in contents:
        spooled.append(Spooled(f"{batch}@{offset}", len(content), digest_of(content)))
        offset += len(content)
    return spooled


def digest_of(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class _WriteRequest:
    content: bytes
    spooled: asyncio.Future[Spooled]


class GroupCommit:
    """Collects concurrent contents and calls `write` with each batch, at most `writers` at once. Contents that arrive
    while all writers are busy form the next batch.
    """

    def __init__(self, write: Write, writers: int = 1) -> None:
        self._write = write
        self._writers_max = writers
        self._requests: list[_WriteRequest] = []
        self._writers: set[asyncio.Task[None]] = set()
        self._is_starting = False

    async def put(self, content: bytes) -> Spooled:
        request = _WriteRequest(content, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        self._start_writer()
        return await request.spooled

    async def drain(self) -> None:
        """Wait until all contents are written."""
        while self._writers:
            await asyncio.wait(self._writers)

    def _start_writer(self) -> None:
        """Start at most one writer per iteration of the event loop, so that its contents form one batch."""
        if not self._is_starting and len(self._writers) < self._writers_max:
            self._is_starting = True
            self._writers.add(asyncio.create_task(self._write_batches(), name="spool-writer"))

    async def _write_batches(self) -> None:
        """Write batches until no content waits."""
        self._is_starting = False
        try:
            for batch in iter(self._next_batch, []):
                if self._requests:
                    self._start_writer()
                await self._write_batch(batch)
        finally:  # without an await after the last check, so that the next content starts a new writer
            self._writers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _write_batch(self, batch: list[_WriteRequest]) -> None:
        try:
            results = await self._write([request.content for request in batch])
        except Exception as error:  # boundary of the task: to the callers
            for request in _not_cancelled(batch):
                request.spooled.set_exception(error)
            return
        for request, spooled in zip(batch, results, strict=True):
            if not request.spooled.done():  # its caller may be cancelled
                request.spooled.set_result(spooled)

    def _next_batch(self) -> list[_WriteRequest]:
        size = 0
        requests = list(_not_cancelled(self._requests))
        for number, request in enumerate(requests):
            size += len(request.content)
            if size > BATCH_MAX_BYTES:
                batch, self._requests = requests[:number], requests[number:]
                return batch
        self._requests = []
        return requests


def _not_cancelled(requests: Sequence[_WriteRequest]) -> Iterator[_WriteRequest]:
    """The requests whose caller was not cancelled."""
    return (request for request in requests if not request.spooled.done())
