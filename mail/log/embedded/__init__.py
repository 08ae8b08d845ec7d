"""Embedded log: one SQLite file on one machine, behind the Log port.

An append that returned survives SIGKILL and power loss (synchronous=FULL; a group of requests shares one flush). Each
router commit and each finish is one transaction. When the disk fails, callers get LogUnavailable and `condition()` is
Down until it works again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import structlog

from mail.log import UNKNOWN_TIME, Backlog, Condition, DeliveryShardProcessor, OnReady, RouterShardProcessor
from mail.log.codec import FrameError, UnknownVersion, decode
from mail.log.embedded.commit import Change, compacted_key, milliseconds, offset_of, topic_and_shard_of
from mail.log.embedded.history import HistoryReader, Query, read_page, read_pages
from mail.log.embedded.lock import DirectoryLock
from mail.log.embedded.query_socket import EmbeddedHistory as EmbeddedHistory
from mail.log.embedded.query_socket import QueryServer
from mail.log.embedded.shards import EmbeddedDeliveryShard, EmbeddedRouterShard, EntryReaders
from mail.log.embedded.store import Store, newer_version
from mail.log.embedded.writer import Writer
from mail.log.followers import Followers, KeyedFrame
from mail.log.ownership import ExclusiveOwnership
from mail.log.topics import TOPICS, ShardCounts, Topic, Topics
from mail.record import Record, received_time
from mail.settings import LogSettings
from mail.tasks import cancel_tasks
from mail.telemetry.log import PRODUCE_DURATION

logger = structlog.get_logger()

READER_BUFFER_BYTES = 16 << 20  # per topic, over all shards: entries passed to owners from memory
_PURGE_ROWS = 1000
_COMPACTED_ROWS = 2000


class EmbeddedLog(HistoryReader):
    """One process uses the file at a time; all shards of a role belong to one owner at a time."""

    def __init__(self, path: Path, settings: LogSettings, topics: Topics = TOPICS) -> None:
        self._path = path.absolute()
        self._settings = settings
        self._readers = EntryReaders()
        counts = ShardCounts(settings.shards, settings.delivery_shards)
        self.writer = Writer(
            self._path,
            counts,
            settings,
            on_appended=self._on_appended,
            on_reopened=self._readers.on_reopened,
            topics=topics,
        )
        self.location = self.writer.location
        self._followers = Followers(partial(newer_version, self.location))
        self._query_server = QueryServer(self._path, self.pages)
        self._lock: DirectoryLock | None = None
        self._router_ownership = ExclusiveOwnership("router")
        self._delivery_ownership = ExclusiveOwnership("delivery")

    @property
    def counts(self) -> ShardCounts:
        return self.writer.counts

    # --- life cycle

    async def start(self) -> None:
        lock = DirectoryLock(self._path)
        if lock.had_owner and (not self._path.exists() or self._path.stat().st_size == 0):
            logger.error(
                "log file is missing or empty: queued mail of the earlier process is not in it",
                path=str(self._path),
                advice="stop eilpost; check log.url, or restore the file from a backup",
            )
        try:
            await self.writer.start()
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
                first.append(received_time(decode(frame, topic.record, b"")))
            except UnknownVersion as reason:
                position = f"{topic.name}, shard {shard}, offset {offset_of(entry_id)}"
                raise newer_version(self.location, position, reason) from None
            except FrameError:
                first.append(UNKNOWN_TIME)
        return min(first, default=None)

    async def purge(self) -> None:
        before = milliseconds(datetime.now(UTC) - self._settings.events_retention)
        while await self.writer.query(partial(Store.purge_events, before=before, limit=_PURGE_ROWS)):
            pass

    # --- Appender

    async def append(self, record: Record) -> None:
        start = perf_counter()
        await self.writer.wait_for_space()
        change = Change()
        change.add((record,), self.writer.place)
        await self.writer.change(change)
        PRODUCE_DURATION.observe(perf_counter() - start)

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
        count = self.counts.by_queue_id
        bytes_max = READER_BUFFER_BYTES // count
        await self._run_with_thread(
            self._router_ownership.run(
                lambda: count,
                lambda number: EmbeddedRouterShard(self.writer, self._readers, number, bytes_max),
                process,
                stop,
                on_ready,
            )
        )

    async def own_delivery_shards(
        self, process: DeliveryShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        count = self.counts.of_dispatched
        bytes_max = READER_BUFFER_BYTES // count
        await self._run_with_thread(
            self._delivery_ownership.run(
                lambda: count,
                lambda number: EmbeddedDeliveryShard(self.writer, self._readers, number, bytes_max),
                process,
                stop,
                on_ready,
            )
        )

    async def _run_with_thread(self, owner: Coroutine[Any, Any, None]) -> None:
        """Run `owner`; raises RuntimeError when a bug has ended the database thread, so that the process ends."""
        owner_task = asyncio.ensure_future(owner)
        crashed = asyncio.ensure_future(self.writer.crashed.wait())
        try:
            await asyncio.wait({owner_task, crashed}, return_when=asyncio.FIRST_COMPLETED)
            if crashed.done():
                raise RuntimeError(self.writer.crash_text)
            owner_task.result()
        finally:
            await cancel_tasks(owner_task, crashed)

    # --- TopicFollower

    def follow(self, topic: Topic, /) -> AsyncIterator[Sequence[Any]]:
        return self._followers.follow(topic, partial(self._read_compacted, topic))

    async def _read_compacted(self, topic: Topic) -> Sequence[KeyedFrame]:
        frames: list[KeyedFrame] = []
        for shard in range(self.counts.of(topic)):
            query = partial(Store.compacted, topic=topic, shard=shard, limit=_COMPACTED_ROWS)
            row_key = ""
            while rows := await self.writer.query(partial(query, after=row_key)):
                row_key = rows[-1][0]
                frames += [KeyedFrame(shard, key.partition("/")[2], frame) for key, frame in rows]
        return frames

    def _on_appended(self, change: Change, ids: Sequence[int]) -> None:
        self._readers.on_appended(change, ids)
        for topic in self._followers.topics if change.compacted else ():
            shards = {compacted_key(topic, shard, ""): shard for shard in range(self.counts.of(topic))}
            parts = ((row_key.partition("/"), frame) for row_key, frame in change.compacted.items())
            changes = [
                KeyedFrame(shards[f"{head}/"], key, frame) for (head, _, key), frame in parts if f"{head}/" in shards
            ]
            self._followers.on_written(topic, changes)

    # --- HistoryLog

    def pages(self, query: Query) -> AsyncIterator[Sequence[bytes]]:
        return read_pages(lambda cursor: self.writer.query(partial(read_page, query=query, cursor=cursor)))

    async def backlog(self) -> Backlog:
        return self.writer.backlog
