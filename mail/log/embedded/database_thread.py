"""Database thread of the embedded log: group commit, queries, vacuum, and recovery from disk failures.

Requests are served in the order of arrival, so a query sees every earlier change. After an error the database is closed
and reopened, every second until that works. Callbacks run on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any, Generic, TypeVar

import structlog

from mail.log import Backlog, LogUnavailable, LogUnusable
from mail.log.embedded.commit import Change
from mail.log.embedded.store import DAMAGE_ADVICE, Store, is_damage
from mail.log.topics import ShardCounts
from mail.telemetry.log import LOG_COMMIT_REQUESTS, PRODUCE_ERRORS

logger = structlog.get_logger()

T = TypeVar("T")

_COMMIT_BYTES = 8 << 20  # one transaction, approximately
_COMMIT_REQUESTS = 1000
# As PostgreSQL's commit_siblings and commit_delay: after a group of this many requests, the next commit starts this
# long after the last one started. Measured at 1,000 new connections a second: 20 % less CPU in total, and a single
# client does not wait.
_COMMIT_SIBLINGS = 4
_COMMIT_DELAY_SECONDS = 0.006
_REOPEN_SECONDS = 1.0
_IDLE_SECONDS = 0.2  # without requests, before the file is vacuumed
_DISK_CHECK_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Request(Generic[T]):
    """A change or a query, and the future of its caller."""

    future: asyncio.Future[T]
    deadline: float
    change: Change | None = None
    query: Callable[[Store], T] | None = None
    waits_without_limit: bool = False
    timed_out: bool = False  # the caller got LogUnavailable; the change is not made if it is still queued
    result: T | None = None
    error: Exception | None = None


class DatabaseThread(threading.Thread):
    """`opened` ends when the database is open, or with the error of `Store`. `on_served` gets requests, the ids of
    their new entries, and the backlog unless the database is closed; `on_failed` the reason; `on_disk_checked` what is
    wrong with the free space and with the file; `on_crashed` the error that has ended the thread.
    """

    def __init__(
        self,
        path: Path,
        counts: ShardCounts,
        min_free_disk: int,
        *,
        on_served: Callable[[Sequence[Request[Any]], Sequence[int], Backlog | None], None],
        on_failed: Callable[[str], None],
        on_reopened: Callable[[], None],
        on_disk_checked: Callable[[str | None, str | None], None],
        on_crashed: Callable[[Exception], None],
    ) -> None:
        super().__init__(name="eilpost-log", daemon=True)
        self._path = path
        self.counts = counts
        self._min_free_disk = min_free_disk
        self._on_served = on_served
        self._on_failed = on_failed
        self._on_reopened = on_reopened
        self._on_disk_checked = on_disk_checked
        self._on_crashed = on_crashed
        self.opened: Future[None] = Future()
        self.opened.set_running_or_notify_cancel()  # not cancelled with its waiter
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Request[Any]] = deque()
        self._wakeup: SimpleQueue[None] = SimpleQueue()
        self._is_idle = False
        self._is_closing = False
        self._store: Store | None = None
        self._failure = ""  # why `_store` is None
        self._is_damaged = False
        self._next_commit_at = self._next_reopen_at = self._next_disk_check_at = 0.0

    def submit(self, request: Request[Any]) -> None:
        self._inbox.append(request)
        if self._is_idle:
            self._is_idle = False
            self._wakeup.put(None)

    def end(self) -> None:
        """End the thread after the queued requests."""
        self._is_closing = True
        self._wakeup.put(None)

    def run(self) -> None:
        try:
            self._store = Store(self._path, self.counts)
        except Exception as error:  # boundary of the thread: to the caller of `opened`
            self.opened.set_exception(error)
            return
        self.counts = self._store.counts
        try:
            self._check_disk()
            self._report_served((), ())
            self.opened.set_result(None)
            self._serve_until_end()
        except Exception as error:  # boundary of the thread: the process ends
            if not self.opened.done():
                self.opened.set_exception(error)
            self._post(self._on_crashed, error)
        finally:
            self._close_store()

    def _serve_until_end(self) -> None:
        while True:
            if self._store is None and not self._is_damaged:
                self._reopen()
            requests = self._collect()
            if requests:
                self._serve(requests)
            elif self._is_closing and not self._inbox:
                break
            else:
                self._vacuum()
            self._check_disk()

    def _collect(self) -> list[Request[Any]]:
        """The queued requests for one transaction; empty after a while without requests."""
        inbox = self._inbox
        if not inbox:
            self._is_idle = True
            if not inbox and not self._is_closing:
                with suppress(Empty):
                    self._wakeup.get(timeout=_IDLE_SECONDS)
            self._is_idle = False
        if inbox and not self._is_closing:
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

    def _serve(self, requests: Sequence[Request[Any]]) -> None:
        """Commit consecutive changes together, and run queries between them."""
        for query, group in groupby(requests, lambda request: request.query):
            if query is None:
                self._commit(list(group))
            else:
                for request in group:
                    self._run_query(request, query)

    def _commit(self, requests: Sequence[Request[Any]]) -> None:
        current: list[Request[Any]] = []
        changes: list[Change] = []
        for request in requests:
            if request.timed_out:
                request.error = LogUnavailable("timed out in the queue")
            else:
                assert request.change is not None
                current.append(request)
                changes.append(request.change)
        ids: Sequence[int] = ()
        try:
            if changes:
                ids = self._require_store().commit(changes)
                LOG_COMMIT_REQUESTS.observe(len(changes))
        except Exception as error:  # boundary of the thread: to the callers
            self._fail_store(error)
            for request in current:
                request.error = LogUnavailable(str(error))
            PRODUCE_ERRORS.inc(len(current))
        self._report_served(requests, ids)

    def _run_query(self, request: Request[T], query: Callable[[Store], T]) -> None:
        if not request.timed_out:
            try:
                request.result = query(self._require_store())
            except Exception as error:  # boundary of the thread: to the caller
                if isinstance(error, (sqlite3.Error, OSError)):
                    self._fail_store(error)
                request.error = LogUnavailable(str(error))
        self._report_served((request,), ())

    def _report_served(self, requests: Sequence[Request[Any]], ids: Sequence[int]) -> None:
        self._post(self._on_served, requests, ids, None if self._store is None else self._store.backlog)

    def _require_store(self) -> Store:
        if self._store is None:
            raise LogUnavailable(self._failure)
        return self._store

    def _fail_store(self, error: Exception) -> None:
        """Close the database. A damaged file stays closed: it might open and accept mail into unreadable pages."""
        if isinstance(error, LogUnavailable):
            return
        self._is_damaged = is_damage(error)
        self._failure = f"the log at {self._path} cannot be written: {error}"
        if self._is_damaged:
            self._failure = f"the log at {self._path} is damaged ({error}): {DAMAGE_ADVICE}"
        logger.error("log failed, mail is not accepted and not processed", error=self._failure)
        self._post(self._on_failed, self._failure)
        self._close_store()

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            try:
                store.close()
            except sqlite3.Error as error:
                logger.warning("log not closed cleanly", path=str(self._path), error=str(error))

    def _reopen(self) -> None:
        if monotonic() < self._next_reopen_at:
            return
        self._next_reopen_at = monotonic() + _REOPEN_SECONDS
        try:
            store = Store(self._path, self.counts)
            store.commit([Change()])  # tests that writes work
        except (sqlite3.Error, OSError, LogUnusable) as error:
            self._failure = f"the log at {self._path} cannot be opened: {error}"
            self._post(self._on_failed, self._failure)
            return
        self._store = store
        logger.info("log available again", path=str(self._path))
        self._post(self._on_reopened)

    def _vacuum(self) -> None:
        """While idle, return unused pages to the file system step by step."""
        try:
            while self._store is not None and not self._inbox and not self._is_closing and self._store.vacuum():
                pass
        except sqlite3.Error as error:
            self._fail_store(error)

    def _check_disk(self) -> None:
        now = monotonic()
        if now < self._next_disk_check_at:
            return
        self._next_disk_check_at = now + _DISK_CHECK_SECONDS
        low_disk = missing_file = None
        try:
            status = os.statvfs(self._path.parent)
        except OSError as error:
            low_disk = f"{self._path.parent}: {error.strerror}"
        else:
            if (free := status.f_bavail * status.f_frsize) < self._min_free_disk:
                low_disk = f"{free >> 20} MiB of disk space free at {self._path.parent}"
            if self._store is not None and not self._store.is_in_place():
                missing_file = f"{self._path} was removed or replaced while eilpost runs: restore it, or stop eilpost"
        self._post(self._on_disk_checked, low_disk, missing_file)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(callback, *arguments)
