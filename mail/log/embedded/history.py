"""Paged read-only queries of the embedded log: history, pending deliveries, unrouted messages, backlog.

Pages are bounded in rows and bytes, so a query does not delay mail. The pages are the same within this process, over
the query socket, and from a database that no process uses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import orjson

from mail.log import Backlog, LogUnusable
from mail.log.codec import FrameError, decode, encode
from mail.log.embedded.commit import offset_of, shard_base_id
from mail.log.embedded.store import UNREADABLE_ADVICE, EntryRow, Store
from mail.log.topics import ACCEPTED, EVENTS, QUEUE, Topic, shard_of_message
from mail.message import QueueId, delivery_prefix
from mail.record import Accepted, Event, Pending, Record

_PAGE_ROWS = 500


class QueryKind(StrEnum):
    HISTORY = "history"
    PENDING = "lines"
    UNROUTED = "inputs"
    BACKLOG = "backlog"


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
    """The page after `cursor` (None: the first). Runs on the database thread."""
    match query.kind:
        case QueryKind.HISTORY:
            events = store.events(query.queue_id, cast("int", cursor or 0), _PAGE_ROWS)
            return Page([frame for _, frame in events], events[-1][0] if events else None)
        case QueryKind.PENDING:
            key = cast("str", cursor or "")
            if query.queue_id:
                shard = shard_of_message(QueueId(query.queue_id), store.counts)
                pending = store.pending(shard, key, _PAGE_ROWS, delivery_prefix(QueueId(query.queue_id)))
            else:
                pending = store.all_pending(key, _PAGE_ROWS)
            return Page([frame for _, frame in pending], pending[-1][0] if pending else None)
        case QueryKind.UNROUTED:
            shard = shard_of_message(QueueId(query.queue_id), store.counts)
            entry_rows = store.entries(
                ACCEPTED, shard, cast("int", cursor or shard_base_id(ACCEPTED, shard)), _PAGE_ROWS
            )
            wanted = query.queue_id.encode()
            return Page(
                [_entry_frame(row) for row in entry_rows.rows if wanted in row.frame[:4096]],
                entry_rows.rows[-1].id if entry_rows.more else None,
            )
        case QueryKind.BACKLOG:
            now = store.backlog
            return Page([orjson.dumps([now.accepted, now.dispatched, now.attempted])], None)


def _entry_frame(row: EntryRow) -> bytes:
    """The entry as one frame. Raises LogUnusable."""
    try:
        frame = encode(row.record())
    except FrameError as reason:
        raise LogUnusable(
            f"the entry at {ACCEPTED.name}, offset {offset_of(row.id)} cannot be read: {reason}; {UNREADABLE_ADVICE}"
        ) from None
    assert frame is not None
    return frame


class HistoryReader:
    """HistoryLog on a source of frames."""

    def frames(self, query: Query) -> AsyncIterator[bytes]:
        raise NotImplementedError

    def location(self) -> str:
        raise NotImplementedError

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        async for frame in self.frames(Query(QueryKind.HISTORY, queue_id)):
            yield cast("Event", self.decode(frame, EVENTS, f"key {queue_id}"))

    async def pending_deliveries(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        async for frame in self.frames(Query(QueryKind.PENDING, queue_id or "")):
            yield cast("Pending", self.decode(frame, QUEUE, "a pending delivery"))

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        records = [
            self.decode(frame, ACCEPTED, f"key {queue_id}")
            async for frame in self.frames(Query(QueryKind.UNROUTED, queue_id))
        ]
        return [record for record in records if isinstance(record, Accepted) and record.message.queue_id == queue_id]

    async def backlog(self) -> Backlog:
        (answer,) = [answer async for answer in self.frames(Query(QueryKind.BACKLOG))]
        return Backlog(*orjson.loads(answer))

    def decode(self, frame: bytes, topic: Topic, position: str) -> Record:
        """The record of a frame. Raises LogUnusable that names the log and the entry."""
        try:
            return decode(frame)
        except FrameError as reason:
            raise LogUnusable(
                f"{self.location()}: the entry at {topic.name}, {position} cannot be "
                f"read: {reason}; {UNREADABLE_ADVICE}"
            ) from None
