"""Request queue of the embedded log, on the event loop: time-outs, back-pressure and the log's condition.

Every request completes, with a result or with LogUnavailable. A change that timed out in the queue is never made.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import structlog

from mail.log import Backlog, Condition, Down, Full, LogUnavailable, LogUnusable, Usable
from mail.log.embedded.commit import Change
from mail.log.embedded.database_thread import DatabaseThread, Request
from mail.log.embedded.store import Store, open_error
from mail.log.topics import TOPICS, Place, ShardCounts, Topics
from mail.record import Record
from mail.settings import LogSettings
from mail.telemetry.log import PRODUCE_ERRORS

logger = structlog.get_logger()

T = TypeVar("T")

_QUEUED_BYTES_MAX = 32 << 20  # of frames; above it, appends wait
_APPEND_BYTES = 256 << 10  # estimated size of an append that waits

OnAppended = Callable[[Change, Sequence[int]], None]


class Writer:
    """`on_appended` gets a durable change and the ids of its entries."""

    def __init__(
        self,
        path: Path,
        counts: ShardCounts,
        settings: LogSettings,
        on_appended: OnAppended,
        on_reopened: Callable[[], None],
        topics: Topics = TOPICS,
    ) -> None:
        self._topics = topics
        self._path = path
        self.location = f"the log at {path}"
        self.counts = counts
        self._settings = settings
        self._on_appended = on_appended
        self._on_reopened = on_reopened
        self._timeout = settings.append_timeout.total_seconds()
        self._thread: DatabaseThread | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._unanswered: deque[Request[Any]] = deque()
        self._queued_bytes = 0
        self._space_waiters: deque[asyncio.Future[None]] = deque()
        self._failure: str | None = None
        self._missing_file: str | None = None
        self._low_disk: str | None = None
        self.backlog = Backlog()
        self.crashed = asyncio.Event()  # a bug has ended the thread
        self.crash_text = ""

    async def start(self) -> None:
        """Open the database, whose number of shards is then in `counts`. Raises LogUnusable."""
        thread = DatabaseThread(
            self._path,
            self.counts,
            self._settings.min_free_disk,
            on_served=self._complete,
            on_failed=self._set_failure,
            on_reopened=self._resume,
            on_disk_checked=self._set_disk_state,
            on_crashed=self._set_crashed,
        )
        thread.start()
        try:
            await asyncio.wrap_future(thread.opened)
        except (sqlite3.Error, OSError, LogUnusable) as error:
            raise open_error(self._path, error) from None
        self.counts = thread.counts
        self._thread = thread
        self._expire_requests()

    async def close(self) -> None:
        """Commit queued requests, then close."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.end()
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        await asyncio.to_thread(thread.join, self._timeout)
        if thread.is_alive():
            logger.error("log not closed: its disk does not respond", path=str(self._path))
        for request in self._unanswered:
            _reject(request, "the log was closed")
        self._unanswered.clear()

    def condition(self) -> Condition:
        if (down := self._failure or self._missing_file) is not None:
            return Down(down)
        if self._low_disk is not None:
            return Full(self._low_disk)
        if self.backlog.accepted >= self._settings.max_unrouted_messages:
            return Full(f"{self.backlog.accepted} messages wait to be routed")
        return Usable()

    def place(self, record: Record) -> Place:
        """The topic, shard and key of a record."""
        return self._topics.place(record, self.counts)

    async def wait_for_space(self) -> None:
        """Wait until new mail may be queued. Raises LogUnavailable."""
        if self._failure is not None:
            raise LogUnavailable(self._failure)
        if self._queued_bytes < _QUEUED_BYTES_MAX and not self._space_waiters:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._space_waiters.append(waiter)
        try:
            async with asyncio.timeout(self._timeout):
                await waiter
        except TimeoutError:
            PRODUCE_ERRORS.inc()
            raise LogUnavailable("the log's disk is too slow for the incoming mail") from None
        finally:
            if waiter in self._space_waiters:
                self._space_waiters.remove(waiter)
            else:
                self._wake_space_waiters()

    def change(self, change: Change, *, waits_without_limit: bool = False) -> asyncio.Future[None]:
        """Make a change durable."""
        request: Request[None] = self._submit(change, None)
        request.waits_without_limit = waits_without_limit
        self._queued_bytes += change.size_bytes
        return request.future

    def query(self, query: Callable[[Store], T]) -> asyncio.Future[T]:
        """Run a query on the thread, after all earlier changes."""
        return self._submit(None, query).future

    def _submit(self, change: Change | None, query: Callable[[Store], T] | None) -> Request[T]:
        if self._thread is None or self.crashed.is_set():
            raise LogUnavailable(self.crash_text or "the log is closed")
        future = asyncio.get_running_loop().create_future()
        request: Request[T] = Request(future, monotonic() + self._timeout, change, query)
        self._unanswered.append(request)
        self._thread.submit(request)
        return request

    def _expire_requests(self) -> None:
        """Reject timed-out requests, except those that wait without limit; the oldest are first."""
        loop = asyncio.get_running_loop()  # the next call first: an exception below must not end the time-outs
        self._expiry_timer = loop.call_later(min(1.0, self._timeout / 4), self._expire_requests)
        now = monotonic()
        unlimited: list[Request[Any]] = []
        while self._unanswered and (self._unanswered[0].future.done() or self._unanswered[0].deadline <= now):
            request = self._unanswered.popleft()
            if not request.future.done():
                self._failure = f"the log's disk has not responded for {self._timeout:g} s"
                if request.waits_without_limit:
                    unlimited.append(request)
                else:
                    request.timed_out = True
                    _reject(request, self._failure)
        self._unanswered.extendleft(reversed(unlimited))

    # --- callbacks of the thread

    def _complete(self, requests: Sequence[Request[Any]], ids: Sequence[int], backlog: Backlog | None) -> None:
        """Pass new entries to the shard owners, then complete the futures."""
        start = 0
        for request in requests:
            change, request.change = request.change, None
            if change is not None:
                self._queued_bytes -= change.size_bytes
                if request.error is None and (change.entries or change.compacted):
                    end = start + len(change.entries)
                    self._on_appended(change, ids[start:end])
                    start = end
            if request.future.done():
                continue
            if request.error is None:
                request.future.set_result(request.result)
            else:
                request.future.set_exception(request.error)
        if backlog is not None:
            self.backlog = backlog
            self._failure = None  # the disk responds
        while self._unanswered and self._unanswered[0].future.done():
            self._unanswered.popleft()
        self._wake_space_waiters()

    def _wake_space_waiters(self) -> None:
        free_bytes = _QUEUED_BYTES_MAX - self._queued_bytes
        while self._space_waiters and free_bytes > 0:
            waiter = self._space_waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                free_bytes -= _APPEND_BYTES

    def _set_failure(self, reason: str) -> None:
        self._failure = reason

    def _set_crashed(self, error: Exception) -> None:
        self.crash_text = self._failure = f"the thread of the log ended: {type(error).__name__}: {error}"
        while self._unanswered:
            _reject(self._unanswered.popleft(), self.crash_text)
        self.crashed.set()

    def _resume(self) -> None:
        self._failure = None
        self._on_reopened()

    def _set_disk_state(self, low_disk: str | None, missing_file: str | None) -> None:
        if missing_file is not None and self._missing_file is None:
            logger.error("log file missing, new mail is refused", error=missing_file)
        self._low_disk, self._missing_file = low_disk, missing_file


def _reject(request: Request[Any], reason: str) -> None:
    if not request.future.done():
        PRODUCE_ERRORS.inc()
        request.future.set_exception(LogUnavailable(reason))
