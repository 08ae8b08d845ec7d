"""The embedded log: one SQLite file on one machine, as durable as its disk, behind the Log port.

In charge of putting the parts together: the lock on the directory, the thread that writes, the shards that read. It
promises that an append that returned survives kill -9 and power loss (synchronous=FULL; a whole group shares one
flush), that router commits and finishes are one transaction each, and that when the disk fails callers get
LogUnavailable and `condition()` says Down until it works again. Next: `mail/log/embedded/writer.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

import structlog

from mail.log import Backlog, Condition, Joined, LogUnusable, Tend, TendDelivery
from mail.log.codec import FrameError, decode, encode
from mail.log.embedded.commit import Change, NewEntry, first_id, line_key, place_of
from mail.log.embedded.history import Historian, Question, slice_of
from mail.log.embedded.lock import DirectoryLock
from mail.log.embedded.request import Request
from mail.log.embedded.shards import EmbeddedDeliveryShard, EmbeddedRouterShard, Tail
from mail.log.embedded.store import Store
from mail.log.embedded.window import EmbeddedHistory as EmbeddedHistory
from mail.log.embedded.window import Window
from mail.log.embedded.writer import Writer
from mail.log.ownership import Turn
from mail.log.topics import QUEUE, ShardCounts, place
from mail.message import Inline
from mail.record import Accepted, Attempted, Dispatched, Event, Record, received_time
from mail.settings import LogSettings
from mail.telemetry.log import PRODUCE_DURATION

log = structlog.get_logger()

TAIL_BYTES = 16 << 20  # of each topic, all shards: what owners are handed from memory
_PURGE_SLICE = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
NO_SOURCES: Mapping[int, int] = MappingProxyType({})


class EmbeddedLog(Historian):
    """The Log port over one file. One process at a time; all shards of a kind belong to one owner at a time."""

    def __init__(self, path: Path, settings: LogSettings) -> None:
        self._path = path.absolute()
        self._settings = settings
        self.counts = ShardCounts(settings.shards, settings.delivery_shards)
        self.writer = Writer(self._path, self.counts, settings, self._arrived, self._reopened)
        self._window = Window(self._path, self.frames)
        self._lock: DirectoryLock | None = None
        self._tails: dict[tuple[str, int], Tail[Any]] = {}
        self._router_turn = Turn("router")
        self._delivery_turn = Turn("delivery")

    # --- life

    async def start(self) -> None:
        lock = DirectoryLock(self._path)
        if lock.had_owner and (not self._path.exists() or self._path.stat().st_size == 0):
            log.warning(
                "the log is new, though there was one here before: what was queued in it is not here",
                path=str(self._path),
            )
        try:
            self.counts = await self.writer.start()
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        await self._window.start()

    async def close(self) -> None:
        await self._window.close()
        await self.writer.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def oldest_unconsumed(self) -> datetime | None:
        first = []
        for entry_id, frame in await self.writer.ask(Store.first_entries):
            topic, shard = place_of(entry_id)
            try:
                record = decode(frame, b"")
            except FrameError as reason:
                raise LogUnusable(
                    f"{self.where()}: an entry of {topic}, shard {shard} cannot be read: {reason}"
                ) from None
            if isinstance(record, Accepted | Dispatched | Attempted):
                first.append(received_time(record))
        return min(first, default=None)

    async def purge(self) -> None:
        before = (datetime.now(UTC) - self._settings.events_kept - _EPOCH) // _MILLISECOND
        more = True
        while more:
            more = await self.writer.ask(partial(Store.purge_events, before=before, limit=_PURGE_SLICE))

    # --- Appender

    async def append(self, record: Record) -> None:
        began = perf_counter()
        await self.writer.room()
        records = (record,)
        change = Change()
        self.add_to(change, records)
        await self.writer.change(change, records)
        PRODUCE_DURATION.observe(perf_counter() - began)

    async def prepare(self, _tenant: str, /) -> None:
        """There is one log for all."""

    def condition(self, _tenant: str = "", /) -> Condition:
        return self.writer.condition()

    def worker_condition(self) -> Condition:
        return self.condition()

    def warnings(self) -> Sequence[str]:
        return ()

    async def reload(self) -> None:
        """It reads no files."""

    # --- RouterLog, DeliveryLog

    async def route(self, tend: Tend, stop: asyncio.Event, joined: Joined | None = None) -> None:
        share = TAIL_BYTES // self.counts.by_queue_id
        await self._router_turn.own(
            lambda: [EmbeddedRouterShard(self, number, share) for number in range(self.counts.by_queue_id)],
            tend,
            stop,
            joined,
        )

    async def deliver(self, tend: TendDelivery, stop: asyncio.Event, joined: Joined | None = None) -> None:
        share = TAIL_BYTES // self.counts.by_site
        await self._delivery_turn.own(
            lambda: [EmbeddedDeliveryShard(self, number, share) for number in range(self.counts.by_site)],
            tend,
            stop,
            joined,
        )

    # --- HistoryLog

    async def frames(self, question: Question) -> AsyncIterator[bytes]:
        after: int | str | None = None
        while True:
            part = await self.writer.ask(partial(slice_of, question=question, after=after))
            for frame in part.frames:
                yield frame
            after = part.after
            if after is None:
                return

    async def backlog(self) -> Backlog:
        return self.writer.backlog

    # --- for the shards

    def where(self) -> str:
        return f"the log at {self._path}"

    def add_to(self, change: Change, records: Sequence[Record], sources: Mapping[int, int] = NO_SOURCES) -> None:
        """Add what the records mean to the database. `sources` are the entries whose content is in it already, by the
        identity of their bytes.
        """
        counts = self.counts
        size = 0
        for record in records:
            frame = encode(record, apart=True)
            if isinstance(record, Event):
                assert frame is not None
                change.events.append(((record.time - _EPOCH) // _MILLISECOND, record.queue_id, frame))
            else:
                topic, shard, key = place(record, counts)
                if topic is QUEUE:
                    change.lines[line_key(shard, key)] = frame
                else:
                    assert frame is not None
                    content = _content(record)
                    shares = sources.get(id(content), 0) if content else 0
                    if shares:
                        content = b""
                    change.entries.append(NewEntry(first_id(topic, shard), frame, content, shares))
                    size += len(content)
            size += 200 if frame is None else len(frame)
        change.size_bytes += size

    def gained(self, tail: Tail[Any]) -> None:
        self._tails[tail.topic.name, tail.shard] = tail

    def lost(self, tail: Tail[Any]) -> None:
        if self._tails.get((tail.topic.name, tail.shard)) is tail:
            del self._tails[tail.topic.name, tail.shard]

    def _arrived(self, request: Request[Any], ids: Sequence[int]) -> None:
        """Entries are durable: hand them to the owners of their shards."""
        assert request.change is not None
        entries = request.change.entries
        at = 0
        for record in request.records:
            if isinstance(record, Accepted | Dispatched | Attempted):
                tail = self._tails.get(place_of(ids[at]))
                if tail is not None:
                    tail.arrived(ids[at], record, len(entries[at].frame) + len(_content(record)))
                at += 1

    def _reopened(self) -> None:
        for tail in self._tails.values():
            tail.reopened()


def _content(record: Record) -> bytes:
    """What is kept apart from the record's frame."""
    if isinstance(record, Accepted | Dispatched) and isinstance(record.content, Inline):
        return record.content.data
    return b""
