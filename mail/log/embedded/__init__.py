"""Embedded log: one SQLite file on one machine, behind the Log port.

An append that returned survives SIGKILL and power loss (synchronous=FULL; a group of requests shares one flush). Each
router commit and each finish is one transaction. When the disk fails, callers get LogUnavailable and `condition()` is
Down until it works again.
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

from mail.log import Backlog, Condition, DeliveryShardProcessor, LogUnusable, OnReady, RouterShardProcessor
from mail.log.codec import FrameError, decode, encode
from mail.log.embedded.commit import Change, NewEntry, pending_key, shard_base_id, topic_and_shard_of
from mail.log.embedded.history import HistoryReader, Query, read_page
from mail.log.embedded.lock import DirectoryLock
from mail.log.embedded.query_socket import EmbeddedHistory as EmbeddedHistory
from mail.log.embedded.query_socket import QueryServer
from mail.log.embedded.request import Request
from mail.log.embedded.shards import EmbeddedDeliveryShard, EmbeddedRouterShard, PartitionReader
from mail.log.embedded.store import Store
from mail.log.embedded.writer import Writer
from mail.log.ownership import ExclusiveOwnership
from mail.log.topics import QUEUE, ShardCounts, place
from mail.message import Inline
from mail.record import Accepted, Attempted, Dispatched, Event, Record, received_time
from mail.settings import LogSettings
from mail.telemetry.log import PRODUCE_DURATION

logger = structlog.get_logger()

READER_BUFFER_BYTES = 16 << 20  # per topic, over all shards: entries passed to owners from memory
_PURGE_ROWS = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
NO_SOURCES: Mapping[int, int] = MappingProxyType({})


class EmbeddedLog(HistoryReader):
    """One process uses the file at a time; all shards of a role belong to one owner at a time."""

    def __init__(self, path: Path, settings: LogSettings) -> None:
        self._path = path.absolute()
        self._settings = settings
        self.counts = ShardCounts(settings.shards, settings.delivery_shards)
        self.writer = Writer(self._path, self.counts, settings, self._on_appended, self._on_reopened)
        self._query_server = QueryServer(self._path, self.frames)
        self._lock: DirectoryLock | None = None
        self._readers: dict[tuple[str, int], PartitionReader[Any]] = {}
        self._router_ownership = ExclusiveOwnership("router")
        self._delivery_ownership = ExclusiveOwnership("delivery")

    # --- life cycle

    async def start(self) -> None:
        lock = DirectoryLock(self._path)
        if lock.had_owner and (not self._path.exists() or self._path.stat().st_size == 0):
            logger.warning("log is empty, although an earlier process used this directory", path=str(self._path))
        try:
            self.counts = await self.writer.start()
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        await self._query_server.start()

    async def close(self) -> None:
        await self._query_server.close()
        await self.writer.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def oldest_unconsumed(self) -> datetime | None:
        first = []
        for entry_id, frame in await self.writer.query(Store.first_entries):
            topic, shard = topic_and_shard_of(entry_id)
            try:
                record = decode(frame, b"")
            except FrameError as reason:
                raise LogUnusable(
                    f"{self.location()}: an entry of {topic}, shard {shard} cannot be read: {reason}"
                ) from None
            if isinstance(record, Accepted | Dispatched | Attempted):
                first.append(received_time(record))
        return min(first, default=None)

    async def purge(self) -> None:
        before = (datetime.now(UTC) - self._settings.events_kept - _EPOCH) // _MILLISECOND
        more = True
        while more:
            more = await self.writer.query(partial(Store.purge_events, before=before, limit=_PURGE_ROWS))

    # --- Appender

    async def append(self, record: Record) -> None:
        began = perf_counter()
        await self.writer.wait_for_space()
        records = (record,)
        change = Change()
        self.add_records(change, records)
        await self.writer.change(change, records)
        PRODUCE_DURATION.observe(perf_counter() - began)

    async def open_tenant(self, _tenant: str, /) -> None:
        """One log for all tenants."""

    def condition(self, _tenant: str = "", /) -> Condition:
        return self.writer.condition()

    def worker_condition(self) -> Condition:
        return self.condition()

    def warnings(self) -> Sequence[str]:
        return ()

    async def reload(self) -> None:
        """There are no files to reload."""

    # --- RouterLog, DeliveryLog

    async def own_router_shards(
        self, process: RouterShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        share = READER_BUFFER_BYTES // self.counts.by_queue_id
        await self._router_ownership.run(
            lambda: [EmbeddedRouterShard(self, number, share) for number in range(self.counts.by_queue_id)],
            process,
            stop,
            on_ready,
        )

    async def own_delivery_shards(
        self, process: DeliveryShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        share = READER_BUFFER_BYTES // self.counts.by_site
        await self._delivery_ownership.run(
            lambda: [EmbeddedDeliveryShard(self, number, share) for number in range(self.counts.by_site)],
            process,
            stop,
            on_ready,
        )

    # --- HistoryLog

    async def frames(self, query: Query) -> AsyncIterator[bytes]:
        cursor: int | str | None = None
        while True:
            page = await self.writer.query(partial(read_page, query=query, cursor=cursor))
            for frame in page.frames:
                yield frame
            cursor = page.cursor
            if cursor is None:
                return

    async def backlog(self) -> Backlog:
        return self.writer.backlog

    # --- for the shards

    def location(self) -> str:
        return f"the log at {self._path}"

    def add_records(self, change: Change, records: Sequence[Record], sources: Mapping[int, int] = NO_SOURCES) -> None:
        """Add the records to the change. `sources` maps the identity of content bytes to the stored entry that has
        them.
        """
        counts = self.counts
        size = 0
        for record in records:
            frame = encode(record, without_content=True)
            if isinstance(record, Event):
                assert frame is not None
                change.events.append(((record.time - _EPOCH) // _MILLISECOND, record.queue_id, frame))
            else:
                topic, shard, key = place(record, counts)
                if topic is QUEUE:
                    change.pending[pending_key(shard, key)] = frame
                else:
                    assert frame is not None
                    content = _content(record)
                    content_of = sources.get(id(content), 0) if content else 0
                    if content_of:
                        content = b""
                    change.entries.append(NewEntry(shard_base_id(topic, shard), frame, content, content_of))
                    size += len(content)
            size += 200 if frame is None else len(frame)
        change.size_bytes += size

    def register_reader(self, reader: PartitionReader[Any]) -> None:
        self._readers[reader.topic.name, reader.shard] = reader

    def unregister_reader(self, reader: PartitionReader[Any]) -> None:
        if self._readers.get((reader.topic.name, reader.shard)) is reader:
            del self._readers[reader.topic.name, reader.shard]

    def _on_appended(self, request: Request[Any], ids: Sequence[int]) -> None:
        """Pass durable entries to the owners of their shards."""
        assert request.change is not None
        entries = request.change.entries
        at = 0
        for record in request.records:
            if isinstance(record, Accepted | Dispatched | Attempted):
                reader = self._readers.get(topic_and_shard_of(ids[at]))
                if reader is not None:
                    reader.on_appended(ids[at], record, len(entries[at].frame) + len(_content(record)))
                at += 1

    def _on_reopened(self) -> None:
        for reader in self._readers.values():
            reader.on_reopened()


def _content(record: Record) -> bytes:
    """The content that is stored apart from the record's frame."""
    if isinstance(record, Accepted | Dispatched) and isinstance(record.content, Inline):
        return record.content.data
    return b""
