"""The one thread that touches the database: takes what waits, makes it durable together, answers once.

In charge of group commit, deadlines, the bound on what waits, and of coming back when the disk failed. Never here:
records, shards. It promises that every request is answered (done, or LogUnavailable), in the order of asking: a read
sees every change asked for before it. A change that timed out while it still waited is never made.
Next: `mail/log/embedded/shards.py`.
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
from mail.log.embedded.request import Request, fail, refuse, succeed, unusable
from mail.log.embedded.store import WHAT_TO_DO, Store, is_damage
from mail.log.topics import ShardCounts
from mail.settings import LogSettings
from mail.telemetry.log import LOG_COMMIT_REQUESTS, PRODUCE_ERRORS

log = structlog.get_logger()

T = TypeVar("T")

WAITING_BYTES_MAX = 32 << 20  # frames on their way to the thread; beyond it, appends wait
_COMMIT_BYTES = 8 << 20  # one transaction, about
_COMMIT_REQUESTS = 1000
_PROBE_SECONDS = 1.0
_SILENCE_SECONDS = 0.2  # then there is time to tidy up
# PostgreSQL's commit_siblings and commit_delay: after a group of so many requests the next one gathers, so long from
# the beginning of the last. Measured at 1,000 new connections a second: a fifth less CPU for everything, and a single
# client waits for nobody.
_CROWD = 4
_GATHER_SECONDS = 0.006
_DISK_LOOK_SECONDS = 1.0

Arrived = Callable[["Request[Any]", Sequence[int]], None]


class Writer:
    """Lives on the event loop's side; the thread inside is its own."""

    def __init__(
        self, path: Path, counts: ShardCounts, settings: LogSettings, arrived: Arrived, reopened: Callable[[], None]
    ) -> None:
        self._path = path
        self._counts = counts
        self._settings = settings
        self._arrived = arrived
        self._reopened = reopened
        self._timeout = settings.append_timeout.total_seconds()
        self._inbox: deque[Request[Any]] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._idle = False
        self._gather_until = 0.0
        self._closing = False
        self._store: Store | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._open: deque[Request[Any]] = deque()
        self._waiting_bytes = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._down: str | None = None
        self._gone: str | None = None
        self._damaged = False
        self._low_disk: str | None = None
        self._looked_at_disk = 0.0
        self._probe_at = 0.0
        self.backlog = Backlog(0, 0, 0)

    # --- on the event loop

    async def start(self) -> ShardCounts:
        """Open the database; how many shards it has. Raises LogUnusable."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[ShardCounts] = self._loop.create_future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, args=(opened,), name="eilpost-log", daemon=True)
        self._thread.start()
        self._counts = await opened
        self._sweep()
        return self._counts

    async def close(self) -> None:
        """Make durable what waits, then let go."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._closing = True
        self._wake.put(None)
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.to_thread(thread.join, self._timeout)
        if thread.is_alive():
            log.error("the log's disk does not answer, leaving it", path=str(self._path))
        for request in self._open:
            refuse(request, "the log was closed")
        self._open.clear()

    def condition(self) -> Condition:
        down = self._down or self._gone
        if down is not None:
            return Down(down)
        if self._low_disk is not None:
            return Full(self._low_disk)
        if self.backlog.accepted >= self._settings.backlog_max:
            return Full(f"{self.backlog.accepted} messages wait to be routed")
        return Usable()

    async def room(self) -> None:
        """Wait until new mail may join the queue to the thread. Raises LogUnavailable."""
        if self._down is not None:
            raise LogUnavailable(self._down)
        if self._waiting_bytes < WAITING_BYTES_MAX and not self._room:
            return
        assert self._loop is not None
        waiter = self._loop.create_future()
        self._room.append(waiter)
        try:
            async with asyncio.timeout(self._timeout):
                await waiter
        except TimeoutError:
            PRODUCE_ERRORS.inc()
            raise LogUnavailable("the log's disk is too slow for what is coming in") from None
        finally:
            if waiter in self._room:
                self._room.remove(waiter)
            else:
                self._let_in()

    def change(self, change: Change, records: Sequence[Any] = (), *, patient: bool = False) -> asyncio.Future[None]:
        """Make a change durable; `records` go to `arrived` with the ids of its entries; the `patient` wait for ever."""
        request: Request[None] = self._request(change, None)
        request.patient, request.records = patient, records
        self._waiting_bytes += change.size_bytes
        return request.future

    def ask(self, question: Callable[[Store], T]) -> asyncio.Future[T]:
        """Run a read on the thread, after all changes asked for so far."""
        return self._request(None, question).future

    def _request(self, change: Change | None, question: Callable[[Store], T] | None) -> Request[T]:
        loop = self._loop
        if loop is None or self._thread is None:
            raise LogUnavailable("the log is closed")
        request: Request[T] = Request(loop.create_future(), monotonic() + self._timeout, change, question)
        self._open.append(request)
        self._inbox.append(request)
        if self._idle:
            self._idle = False
            self._wake.put(None)
        return request

    def _sweep(self) -> None:
        """Answer requests that waited too long, unless they are patient; the oldest stand first."""
        now = monotonic()
        patient: list[Request[Any]] = []
        while self._open and (self._open[0].future.done() or self._open[0].deadline <= now):
            request = self._open.popleft()
            if not request.future.done():
                self._down = f"the log's disk has not answered for {self._timeout:g} s"
                if request.patient:
                    patient.append(request)
                else:
                    request.late = True
                    refuse(request, self._down)
        self._open.extendleft(reversed(patient))
        assert self._loop is not None
        self._sweeper = self._loop.call_later(min(1.0, self._timeout / 4), self._sweep)

    def _settle(self, requests: Sequence[Request[Any]], ids: Sequence[int], backlog: Backlog | None) -> None:
        """One group is done: tell those who wait for its entries, then those who asked."""
        at = 0
        for request in requests:
            if request.change is not None:
                self._waiting_bytes -= request.change.size_bytes
                if request.error is None and request.change.entries:
                    count = len(request.change.entries)
                    self._arrived(request, ids[at : at + count])
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
            self._down = None  # it answers
        while self._open and self._open[0].future.done():
            self._open.popleft()
        self._let_in()

    def _let_in(self) -> None:
        room = WAITING_BYTES_MAX - self._waiting_bytes
        while self._room and room > 0:
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 256 << 10  # an append is hardly larger; an estimate is enough here

    def _came_down(self, reason: str) -> None:
        self._down = reason

    def _came_up(self) -> None:
        self._down = None
        self._reopened()

    def _saw_disk(self, low: str | None, gone: str | None) -> None:
        if gone is not None and self._gone is None:
            log.error("log is gone", reason=gone)
        self._low_disk, self._gone = low, gone

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
        self._look_at_disk()
        self._post(self._settle, (), (), store.backlog)
        self._post(succeed, opened, store.counts)
        while True:
            if self._store is None and not self._damaged:
                self._reopen()
            requests = self._gather()
            if requests:
                self._serve(requests)
            elif self._closing and not self._inbox:
                break
            else:
                self._tidy()
            self._look_at_disk()
        if self._store is not None:
            try:
                self._store.close()
            except sqlite3.Error as error:
                log.warning("the log did not close cleanly, it recovers at the next start", reason=str(error))

    def _gather(self) -> list[Request[Any]]:
        """What waits, up to one transaction's worth; empty after some silence."""
        inbox = self._inbox
        if not inbox:
            self._idle = True
            if not inbox and not self._closing:
                with suppress(Empty):
                    self._wake.get(timeout=_SILENCE_SECONDS)
            self._idle = False
        if inbox and not self._closing:
            sleep(max(0.0, self._gather_until - monotonic()))
        requests: list[Request[Any]] = []
        size = 0
        while inbox and len(requests) < _COMMIT_REQUESTS and size < _COMMIT_BYTES:
            request = inbox.popleft()
            requests.append(request)
            if request.change is not None:
                size += request.change.size_bytes
        self._gather_until = monotonic() + _GATHER_SECONDS if len(requests) >= _CROWD else 0.0
        return requests

    def _serve(self, requests: list[Request[Any]]) -> None:
        """Runs of changes are committed together, questions answered between them."""
        at = 0
        while at < len(requests):
            if requests[at].change is None:
                self._answer(requests[at])
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
            if change is None or request.late:
                request.error = LogUnavailable("too late")
            else:
                wanted.append(request)
                changes.append(change)
        ids: Sequence[int] = ()
        backlog: Backlog | None = None
        try:
            if changes:
                ids = self._opened().commit(changes)
            if self._store is not None:  # it answers, also where all came too late: else nobody would ask it again
                backlog = self._store.backlog
        except Exception as error:
            self._lost(error)
            for request in wanted:
                request.error = LogUnavailable(str(error))
            PRODUCE_ERRORS.inc(len(wanted))
        else:
            LOG_COMMIT_REQUESTS.observe(len(changes))
        self._post(self._settle, requests, ids, backlog)

    def _answer(self, request: Request[Any]) -> None:
        assert request.ask is not None
        if not request.late:
            try:
                request.answer = request.ask(self._opened())
            except Exception as error:
                if isinstance(error, (sqlite3.Error, OSError)):
                    self._lost(error)
                request.error = LogUnavailable(str(error))
        self._post(self._settle, (request,), (), None if self._store is None else self._store.backlog)

    def _opened(self) -> Store:
        if self._store is None:
            raise LogUnavailable(self._down or "the log is being opened again")
        return self._store

    def _lost(self, error: Exception) -> None:
        """Something failed: close, and open again at once, then every second. A damaged file stays closed: it would
        open, and take mail into what cannot be read.
        """
        if isinstance(error, LogUnavailable):
            return
        reason = f"the log at {self._path} cannot be written: {error}"
        if is_damage(error):
            self._damaged = True
            reason = f"the log at {self._path} is damaged ({error}): {WHAT_TO_DO}"
        log.error("log failed", reason=reason)
        self._post(self._came_down, reason)
        store, self._store = self._store, None
        if store is not None:
            try:
                store.close()
            except sqlite3.Error as second:
                log.warning("log did not close", path=str(self._path), reason=str(second))

    def _reopen(self) -> None:
        if monotonic() < self._probe_at:
            return
        self._probe_at = monotonic() + _PROBE_SECONDS
        try:
            store = Store(self._path, self._counts)
            store.commit([Change()])  # a write, to see that it can
        except (sqlite3.Error, OSError, LogUnusable) as error:
            self._post(self._came_down, f"the log at {self._path} cannot be opened: {error}")
            return
        self._store = store
        log.info("log works again", path=str(self._path))
        self._post(self._came_up)

    def _tidy(self) -> None:
        """Nothing to do: give back what the file does not need, step by step."""
        try:
            while self._store is not None and not self._inbox and not self._closing and self._store.tidy():
                pass
        except sqlite3.Error as error:
            self._lost(error)

    def _look_at_disk(self) -> None:
        now = monotonic()
        if now - self._looked_at_disk < _DISK_LOOK_SECONDS:
            return
        self._looked_at_disk = now
        try:
            facts = os.statvfs(self._path.parent)
        except OSError as error:
            self._post(self._saw_disk, f"{self._path.parent}: {error.strerror}", None)
            return
        low = gone = None
        if (free := facts.f_bavail * facts.f_frsize) < self._settings.min_free_disk:
            low = f"{free >> 20} MiB of disk are left at {self._path.parent}"
        if self._store is not None and not self._store.is_in_place():
            gone = f"{self._path} was removed or replaced while eilpost runs: put it back, or stop eilpost"
        self._post(self._saw_disk, low, gone)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return
