"""Paged read-only queries of the embedded log: history, queue entries, unrouted messages, backlog.

Pages are bounded in rows and bytes, so a query does not delay mail. The pages are the same within this process, over
the query socket, and from a database that no process uses.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import Any, cast

import msgspec
import orjson

from mail.log import Backlog
from mail.log.codec import FrameError, UnknownVersion, decode, encode
from mail.log.damaged import Damaged, find_id
from mail.log.embedded.check import CheckedPage, check_page
from mail.log.embedded.commit import shard_base_id
from mail.log.embedded.store import EntryRow, Store, newer_version
from mail.log.queue_summary import QueueSummary
from mail.log.topics import ACCEPTED, EVENTS, QUEUE, Topic, shard_of_message
from mail.message import QueueId, delivery_prefix
from mail.record import Accepted, Event, QueueEntry

_PAGE_ROWS = 500
_QUEUE_PAGE_ROWS = 2000  # a page waits for the commits before it


class QueryKind(StrEnum):
    HISTORY = "history"
    QUEUE = "queue"
    UNROUTED = "unrouted"
    BACKLOG = "backlog"
    CHECK = "check"  # of all records


@dataclass(frozen=True, slots=True)
class Query:
    kind: QueryKind
    queue_id: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Frames of an answer and the position of the next page; None: this was the last."""

    frames: Sequence[bytes]
    cursor: int | str | None


def read_page(store: Store, query: Query, cursor: int | str | None) -> Page:
    """The page after `cursor` (None: the first). Runs on the database thread. Raises LogUnusable."""
    queue_id = QueueId(query.queue_id)
    match query.kind:
        case QueryKind.HISTORY:
            events = store.events(queue_id, cast("int", cursor or 0), _PAGE_ROWS)
            return Page([frame for _, frame in events], events[-1][0] if events else None)
        case QueryKind.QUEUE:
            key = cast("str", cursor or "")
            if queue_id:
                shard = shard_of_message(queue_id, store.counts)
                rows = store.compacted(QUEUE, shard, key, _QUEUE_PAGE_ROWS, delivery_prefix(queue_id))
            else:
                rows = store.all_queue_entries(key, _QUEUE_PAGE_ROWS)
            return Page([frame for _, frame in rows], rows[-1][0] if rows else None)
        case QueryKind.UNROUTED:
            shard = shard_of_message(queue_id, store.counts)
            after = cast("int", cursor or shard_base_id(ACCEPTED, shard))
            entries = store.entries(ACCEPTED, shard, after, _PAGE_ROWS)
            key_bytes = queue_id.encode()
            return Page(
                [frame for row in entries.rows if key_bytes in row.frame[:4096] for frame in _whole_frame(row)],
                entries.rows[-1].id if entries.more else None,
            )
        case QueryKind.BACKLOG:
            return Page([orjson.dumps(astuple(store.backlog))], None)
        case QueryKind.CHECK:
            page, following = check_page(store, cast("str", cursor or ""))
            return Page([msgspec.json.encode(page)], following)


def _whole_frame(row: EntryRow) -> Sequence[bytes]:
    """The frame of an entry with its content; none if it is damaged."""
    try:
        return [encode(row.record(Accepted)) or b""]
    except UnknownVersion:
        return [row.frame]  # its reader reports it
    except FrameError:
        return []


async def read_pages(read: Callable[[int | str | None], Awaitable[Page]]) -> AsyncGenerator[Sequence[bytes], None]:
    """The frames of all pages; `read` returns the page after a cursor."""
    page = await read(None)
    while True:
        yield page.frames
        if page.cursor is None:
            return
        page = await read(page.cursor)


class HistoryReader:
    """HistoryLog on a source of frames."""

    location: str  # of the log, in error texts

    def pages(self, query: Query) -> AsyncIterator[Sequence[bytes]]:
        """The frames of the answer, some at a time."""
        raise NotImplementedError

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event | Damaged]:
        async for frame in self._frames(Query(QueryKind.HISTORY, queue_id)):
            yield self._decode(frame, EVENTS, queue_id)

    async def queue_entries(self, queue_id: QueueId | None = None) -> AsyncIterator[QueueEntry]:
        async for frame in self._frames(Query(QueryKind.QUEUE, queue_id or "")):
            entry = self._decode(frame, QUEUE, queue_id or "")
            if not isinstance(entry, Damaged):
                yield entry

    async def summarize_queue(self, summary: QueueSummary) -> None:
        try:
            async for frames in self.pages(Query(QueryKind.QUEUE)):
                for frame in frames:
                    summary.add(frame)
        except UnknownVersion as reason:
            raise newer_version(self.location, f"{QUEUE.name}, a queue entry", reason) from None

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        records = [
            self._decode(frame, ACCEPTED, queue_id) async for frame in self._frames(Query(QueryKind.UNROUTED, queue_id))
        ]
        return [record for record in records if not isinstance(record, Damaged) and record.message.queue_id == queue_id]

    async def backlog(self) -> Backlog:
        (counts,) = [frame async for frame in self._frames(Query(QueryKind.BACKLOG))]
        return Backlog(*orjson.loads(counts))

    async def check(self) -> AsyncIterator[CheckedPage]:
        """Decode all records, page by page."""
        async for frame in self._frames(Query(QueryKind.CHECK)):
            yield msgspec.json.decode(frame, type=CheckedPage)

    async def _frames(self, query: Query) -> AsyncIterator[bytes]:
        async for frames in self.pages(query):
            for frame in frames:
                yield frame

    def _decode(self, frame: bytes, topic: Topic, key: str) -> Any:
        """The record, or Damaged. Raises LogUnusable for a newer version."""
        try:
            return decode(frame, topic.record)
        except UnknownVersion as reason:
            raise newer_version(self.location, f"{topic.name}, key {key or find_id(frame)}", reason) from None
        except FrameError as reason:
            return Damaged(topic.name, 0, None, key, frame, str(reason))
