"""Reading the embedded log for people: a message's history, the open lines, what just came in, the backlog.

In charge of cutting an answer into slices (bounded in rows and bytes, so that no reader holds up the mail) and of what
frames mean to a reader. The slices are the same whether they are read in this process, over the socket of
`mail/log/embedded/window.py`, or from a database nobody uses. Never writes. Next: `mail/log/embedded/window.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import orjson

from mail.log import Backlog, LogUnusable
from mail.log.codec import FrameError, decode, encode
from mail.log.embedded.commit import first_id, offset_of
from mail.log.embedded.store import LEFT_ALONE, EntryRow, Store
from mail.log.topics import ACCEPTED, EVENTS, QUEUE, Topic, shard_of_message
from mail.message import QueueId, delivery_prefix
from mail.record import Accepted, Event, Pending, Record

_SLICE = 500


class About(StrEnum):
    HISTORY = "history"
    LINES = "lines"
    INPUTS = "inputs"
    BACKLOG = "backlog"


@dataclass(frozen=True, slots=True)
class Question:
    about: About
    queue_id: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """Some frames of an answer, and where the next slice begins; None: that was all."""

    frames: Sequence[bytes]
    after: int | str | None


def slice_of(store: Store, question: Question, after: int | str | None) -> Slice:
    """The slice behind `after` (None: the first). On the database's thread."""
    match question.about:
        case About.HISTORY:
            events = store.events(question.queue_id, cast("int", after or 0), _SLICE)
            return Slice([frame for _, frame in events], events[-1][0] if events else None)
        case About.LINES:
            key = cast("str", after or "")
            if question.queue_id:
                shard = shard_of_message(QueueId(question.queue_id), store.counts)
                lines = store.lines(shard, key, _SLICE, delivery_prefix(QueueId(question.queue_id)))
            else:
                lines = store.all_lines(key, _SLICE)
            return Slice([frame for _, frame in lines], lines[-1][0] if lines else None)
        case About.INPUTS:
            shard = shard_of_message(QueueId(question.queue_id), store.counts)
            found = store.entries(ACCEPTED, shard, cast("int", after or first_id(ACCEPTED, shard)), _SLICE)
            wanted = question.queue_id.encode()
            return Slice(
                [_whole(row) for row in found.rows if wanted in row.frame[:4096]],
                found.rows[-1].id if found.more else None,
            )
        case About.BACKLOG:
            now = store.backlog
            return Slice([orjson.dumps([now.accepted, now.dispatched, now.attempted])], None)


def _whole(row: EntryRow) -> bytes:
    """The entry as one frame. Raises LogUnusable."""
    try:
        frame = encode(row.record())
    except FrameError as reason:
        raise LogUnusable(
            f"the entry at {ACCEPTED.name}, offset {offset_of(row.id)} cannot be read: {reason}; {LEFT_ALONE}"
        ) from None
    assert frame is not None
    return frame


class Historian:
    """HistoryLog over anything that answers questions in frames."""

    def frames(self, question: Question) -> AsyncIterator[bytes]:
        raise NotImplementedError

    def where(self) -> str:
        raise NotImplementedError

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        async for frame in self.frames(Question(About.HISTORY, queue_id)):
            yield cast("Event", self.read(frame, EVENTS, f"key {queue_id}"))

    async def open_lines(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        async for frame in self.frames(Question(About.LINES, queue_id or "")):
            yield cast("Pending", self.read(frame, QUEUE, "a line"))

    async def waiting_inputs(self, queue_id: QueueId) -> Sequence[Accepted]:
        records = [
            self.read(frame, ACCEPTED, f"key {queue_id}")
            async for frame in self.frames(Question(About.INPUTS, queue_id))
        ]
        return [record for record in records if isinstance(record, Accepted) and record.message.queue_id == queue_id]

    async def backlog(self) -> Backlog:
        (answer,) = [answer async for answer in self.frames(Question(About.BACKLOG))]
        return Backlog(*orjson.loads(answer))

    def read(self, frame: bytes, topic: Topic, place: str) -> Record:
        """Decode, or say which entry of which log cannot be read."""
        try:
            return decode(frame)
        except FrameError as reason:
            raise LogUnusable(
                f"{self.where()}: the entry at {topic.name}, {place} cannot be read: {reason}; {LEFT_ALONE}"
            ) from None
