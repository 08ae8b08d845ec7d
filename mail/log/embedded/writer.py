"""The database thread: group commit, timeouts, back-pressure and recovery from disk failures.

Every request completes, with a result or with LogUnavailable, in the order of arrival, so a query sees every earlier
change. A change that timed out in the queue is never made.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any, TypeVar

import structlog

from mail.log import Backlog, Condition, Down, Full, LogUnavailable, LogUnusable, Usable
from mail.log.embedded.commit import Change
from mail.log.embedded.request import Request, fail, reject, succeed, unusable
from mail.log.embedded.store import DAMAGE_ADVICE, Store, is_damage
from mail.log.topics import ShardCounts
from mail.settings import LogSettings
from mail.telemetry.log import LOG_COMMIT_REQUESTS, PRODUCE_ERRORS

logger = structlog.get_logger()

T = TypeVar("T")

WAITING_BYTES_MAX = 32 << 20  # of queued frames; above it, appends wait
_COMMIT_BYTES = 8 << 20  # one transaction, approximately
_COMMIT_REQUESTS = 1000
_REOPEN_SECONDS = 1.0
_IDLE_SECONDS = 0.2  # without requests, before the file is vacuumed
# As PostgreSQL's commit_siblings and commit_delay: after a group of this many requests, the next commit starts this
# long after the last one started. Measured at 1,000 new connections a second: 20 % less CPU in total, and a single
# client does not wait.
_COMMIT_SIBLINGS = 4
_COMMIT_DELAY_SECONDS = 0.006
_DISK_CHECK_SECONDS = 1.0

OnAppended = Callable[["Request[Any]", Sequence[int]], None]


class Writer:
    """Used on the event loop; owns its thread."""

    def __init__(
        self,
        path: Path,
        counts: ShardCounts,
        settings: LogSettings,
        on_appended: OnAppended,
        on_reopened: Callable[[], None],
    ) -> None:
        self._path = path
        self._counts = counts
        self._settings = settings
        self._on_appended = on_appended
        self._on_reopened = on_reopened
        self._timeout = settings.append_timeout.total_seconds()
        self._inbox: deque[Request[Any]] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._idle = False
        self._next_commit_at = 0.0
        self._closing = False
        self._store: Store | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._unanswered: deque[Request[Any]] = deque()
        self._waiting_bytes = 0
        self._space_waiters: deque[asyncio.Future[None]] = deque()
        self._down: str | None = None
        self._file_missing: str | None = None
        self._damaged = False
        self._low_disk: str | None = None
        self._disk_checked_at = 0.0
        self._next_reopen_at = 0.0
        self.backlog = Backlog(0, 0, 0)

    # --- on the event loop

    async def start(self) -> ShardCounts:
        """Open the database; returns the number of shards. Raises LogUnusable."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[ShardCounts] = self._loop.create_future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, args=(opened,), name="eilpost-log", daemon=True)
        self._thread.start()
        self._counts = await opened
        self._expire_requests()
        return self._counts

    async def close(self) -> None:
        """Commit queued requests, then close."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._closing = True
        self._wake.put(None)
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        await asyncio.to_thread(thread.join, self._timeout)
        if thread.is_alive():
            logger.error("log not closed: its disk does not respond", path=str(self._path))
        for request in self._unanswered:
            reject(request, "the log was closed")
        self._unanswered.clear()

    def condition(self) -> Condition:
        down = self._down or self._file_missing
        if down is not None:
            return Down(down)
        if self._low_disk is not None:
            return Full(self._low_disk)
        if self.backlog.accepted >= self._settings.backlog_max:
            return Full(f"{self.backlog.accepted} messages wait to be routed")
        return Usable()

    async def wait_for_space(self) -> None:
        """Wait until new mail may be queued. Raises LogUnavailable."""
        if self._down is not None:
            raise LogUnavailable(self._down)
        if self._waiting_bytes < WAITING_BYTES_MAX and not self._space_waiters:
            return
        assert self._loop is not None
        waiter = self._loop.create_future()
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

    def change(
        self, change: Change, records: Sequence[Any] = (), *, waits_without_limit: bool = False
    ) -> asyncio.Future[None]:
        """Make a change durable; `records` are passed to `on_appended` with the ids of its entries."""
        request: Request[None] = self._request(change, None)
        request.waits_without_limit, request.records = waits_without_limit, records
        self._waiting_bytes += change.size_bytes
        return request.future

    def query(self, query: Callable[[Store], T]) -> asyncio.Future[T]:
        """Run a query on the thread, after all earlier changes."""
        return self._request(None, query).future

    def _request(self, change: Change | None, query: Callable[[Store], T] | None) -> Request[T]:
        loop = self._loop
        if loop is None or self._thread is None:
            raise LogUnavailable("the log is closed")
        request: Request[T] = Request(loop.create_future(), monotonic() + self._timeout, change, query)
        self._unanswered.append(request)
        self._inbox.append(request)
        if self._idle:
            self._idle = False
            self._wake.put(None)
        return request

    def _expire_requests(self) -> None:
        """Reject timed-out requests, except those that wait without limit; the oldest are first."""
        now = monotonic()
        unlimited: list[Request[Any]] = []
        while self._unanswered and (self._unanswered[0].future.done() or self._unanswered[0].deadline <= now):
            request = self._unanswered.popleft()
            if not request.future.done():
                self._down = f"the log's disk has not responded for {self._timeout:g} s"
                if request.waits_without_limit:
                    unlimited.append(request)
                else:
                    request.timed_out = True
                    reject(request, self._down)
        self._unanswered.extendleft(reversed(unlimited))
        assert self._loop is not None
        self._expiry_timer = self._loop.call_later(min(1.0, self._timeout / 4), self._expire_requests)

    def _complete(self, requests: Sequence[Request[Any]], ids: Sequence[int], backlog: Backlog | None) -> None:
        """A group is done: pass its entries to the shard owners, then complete the futures."""
        at = 0
        for request in requests:
            if request.change is not None:
                self._waiting_bytes -= request.change.size_bytes
                if request.error is None and request.change.entries:
                    count = len(request.change.entries)
                    self._on_appended(request, ids[at : at + count])
                    at += count
                request.change = None
            future = request.future
            if future.done():
                continue
            if request.error is None:
                future.set_result(request.answer)
            else:
                future.set_exception(request.error)
        if backlog is not None:
            self.backlog = backlog
            self._down = None  # the disk responds
        while self._unanswered and self._unanswered[0].future.done():
            self._unanswered.popleft()
        self._wake_space_waiters()

    def _wake_space_waiters(self) -> None:
        free_bytes = WAITING_BYTES_MAX - self._waiting_bytes
        while self._space_waiters and free_bytes > 0:
            waiter = self._space_waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                free_bytes -= 256 << 10  # estimated size of an append

    def _set_down(self, reason: str) -> None:
        self._down = reason

    def _set_up(self) -> None:
        self._down = None
        self._on_reopened()

    def _set_disk_state(self, low: str | None, file_missing: str | None) -> None:
        if file_missing is not None and self._file_missing is None:
            logger.error("log file missing", reason=file_missing)
        self._low_disk, self._file_missing = low, file_missing

    # --- on the thread

    def _run(self, opened: asyncio.Future[ShardCounts]) -> None:
        loop = self._loop
        assert loop is not None
        try:
            store = Store(self._path, self._counts)
        except Exception as error:
            self._post(fail, opened, unusable(self._path, error))
            return
        self._store = store
        self._check_disk()
        self._post(self._complete, (), (), store.backlog)
        self._post(succeed, opened, store.counts)
        while True:
            if self._store is None and not self._damaged:
                self._reopen()
            requests = self._collect()
            if requests:
                self._serve(requests)
            elif self._closing and not self._inbox:
                break
            else:
                self._vacuum()
            self._check_disk()
        if self._store is not None:
            try:
                self._store.close()
            except sqlite3.Error as error:
                logger.warning("log not closed cleanly, it recovers at the next start", reason=str(error))

    def _collect(self) -> list[Request[Any]]:
        """The queued requests for one transaction; empty after a while without requests."""
        inbox = self._inbox
        if not inbox:
            self._idle = True
            if not inbox and not self._closing:
                with suppress(Empty):
                    self._wake.get(timeout=_IDLE_SECONDS)
            self._idle = False
        if inbox and not self._closing:
            sleep(max(0.0, self._next_commit_at - monotonic()))
        requests: list[Request[Any]] = []
        size = 0
        while inbox and len(requests) < _COMMIT_REQUESTS and size < _COMMIT_BYTES:
            request = inbox.popleft()
            requests.append(request)
            if request.change is not None:
                size += request.change.size_bytes
        self._next_commit_at = monotonic() + _COMMIT_DELAY_SECONDS if len(requests) >= _COMMIT_SIBLINGS else 0.0
        return requests

    def _serve(self, requests: list[Request[Any]]) -> None:
        """Commit consecutive changes together, and run queries between them."""
        at = 0
        while at < len(requests):
            if requests[at].change is None:
                self._run_query(requests[at])
                at += 1
                continue
            end = at
            while end < len(requests) and requests[end].change is not None:
                end += 1
            self._commit(requests[at:end])
            at = end

    def _commit(self, requests: list[Request[Any]]) -> None:
        wanted: list[Request[Any]] = []
        changes: list[Change] = []
        for request in requests:
            change = request.change
            if change is None or request.timed_out:
                request.error = LogUnavailable("timed out in the queue")
            else:
                wanted.append(request)
                changes.append(change)
        ids: Sequence[int] = ()
        backlog: Backlog | None = None
        try:
            if changes:
                ids = self._require_store().commit(changes)
            if self._store is not None:  # also when all requests timed out: otherwise the log stays Down
                backlog = self._store.backlog
        except Exception as error:
            self._fail_store(error)
            for request in wanted:
                request.error = LogUnavailable(str(error))
            PRODUCE_ERRORS.inc(len(wanted))
        else:
            LOG_COMMIT_REQUESTS.observe(len(changes))
        self._post(self._complete, requests, ids, backlog)

    def _run_query(self, request: Request[Any]) -> None:
        assert request.query is not None
        if not request.timed_out:
            try:
                request.answer = request.query(self._require_store())
            except Exception as error:
                if isinstance(error, (sqlite3.Error, OSError)):
                    self._fail_store(error)
                request.error = LogUnavailable(str(error))
        self._post(self._complete, (request,), (), None if self._store is None else self._store.backlog)

    def _require_store(self) -> Store:
        if self._store is None:
            raise LogUnavailable(self._down or "the log is being reopened")
        return self._store

    def _fail_store(self, error: Exception) -> None:
        """After an error, close the database and reopen it at once, then every second. A damaged file stays closed: it
        might open and accept mail into unreadable pages.
        """
        if isinstance(error, LogUnavailable):
            return
        reason = f"the log at {self._path} cannot be written: {error}"
        if is_damage(error):
            self._damaged = True
            reason = f"the log at {self._path} is damaged ({error}): {DAMAGE_ADVICE}"
        logger.error("log failed", reason=reason)
        self._post(self._set_down, reason)
        store, self._store = self._store, None
        if store is not None:
            try:
                store.close()
            except sqlite3.Error as second:
                logger.warning("log did not close", path=str(self._path), reason=str(second))

    def _reopen(self) -> None:
        if monotonic() < self._next_reopen_at:
            return
        self._next_reopen_at = monotonic() + _REOPEN_SECONDS
        try:
            store = Store(self._path, self._counts)
            store.commit([Change()])  # a write, to test that writes work
        except (sqlite3.Error, OSError, LogUnusable) as error:
            self._post(self._set_down, f"the log at {self._path} cannot be opened: {error}")
            return
        self._store = store
        logger.info("log available again", path=str(self._path))
        self._post(self._set_up)

    def _vacuum(self) -> None:
        """While idle, return unused pages to the file system step by step."""
        try:
            while self._store is not None and not self._inbox and not self._closing and self._store.vacuum():
                pass
        except sqlite3.Error as error:
            self._fail_store(error)

    def _check_disk(self) -> None:
        now = monotonic()
        if now - self._disk_checked_at < _DISK_CHECK_SECONDS:
            return
        self._disk_checked_at = now
        try:
            facts = os.statvfs(self._path.parent)
        except OSError as error:
            self._post(self._set_disk_state, f"{self._path.parent}: {error.strerror}", None)
            return
        low = file_missing = None
        if (free := facts.f_bavail * facts.f_frsize) < self._settings.min_free_disk:
            low = f"{free >> 20} MiB of disk space free at {self._path.parent}"
        if self._store is not None and not self._store.is_in_place():
            file_missing = f"{self._path} was removed or replaced while eilpost runs: restore it, or stop eilpost"
        self._post(self._set_disk_state, low, file_missing)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed
            return
