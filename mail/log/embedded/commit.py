"""Packing of a batch of changes into one SQL statement.

A commit of a dozen statements cost more than its rows under load, because SQLite's thread releases the GIL at every
statement and then contends with the event loop for it. So a batch is one row of a temporary view (joined frames,
numbers in JSON), and the view's trigger writes the tables in one transaction. Content is stored once: a Dispatched that
follows from an Accepted refers to the row of its input, and the row is deleted with the last entry that refers to it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import orjson

from mail.log.codec import encode
from mail.log.damaged import Damaged
from mail.log.topics import ACCEPTED, ATTEMPTED, CONSUMED_TOPICS, QUEUE, Place, Topic
from mail.message import Inline
from mail.record import Accepted, Attempted, Dispatched, Event, Record

_OFFSET_BITS = 50
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_SHARD_BITS = 11
_NUMBERS = {
    topic.name: number for number, topic in enumerate(CONSUMED_TOPICS)
}  # the file stores them, and counts them in columns
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

OFFSET_MAX = _OFFSET_MASK
NO_SOURCES: Mapping[int, int] = MappingProxyType({})

# `bodies` are [id, checksum, position, length], `entries` [id, body, entry with the same body, position, length] (0:
# none), `compacted` [key, position, length], `events` [id, time, queue id, position, length]; position (from 1) and
# length locate the bytes in `frames`. `accepted` and `attempted` are ranges of consumed ids, [first, last];
# `dispatched` are consumed ids; `appended` is the number of new entries of each topic. An entry that shares the body of
# a missing entry gets NULL; the table refuses it, and with it the whole batch. A negative id: it then has no body.
UNPACK = """
CREATE TEMP VIEW batch (
    frames, bodies, entries, compacted, settled, events, appended, accepted, dispatched, attempted, top_offset
) AS SELECT 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0;

CREATE TEMP TRIGGER unpack INSTEAD OF INSERT ON batch BEGIN
    INSERT INTO body (id, checksum, content)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
            substr(NEW.frames, json_extract(value, '$[2]'), json_extract(value, '$[3]'))
        FROM json_each(NEW.bodies);
    INSERT INTO entry (id, body, frame)
        SELECT json_extract(value, '$[0]'),
            CASE WHEN json_extract(value, '$[2]') = 0 THEN json_extract(value, '$[1]')
                WHEN json_extract(value, '$[2]') < 0
                THEN coalesce((SELECT body FROM entry AS other WHERE other.id = -json_extract(value, '$[2]')), 0)
                ELSE (SELECT body FROM entry AS other WHERE other.id = json_extract(value, '$[2]')) END,
            substr(NEW.frames, json_extract(value, '$[3]'), json_extract(value, '$[4]'))
        FROM json_each(NEW.entries);
    INSERT OR REPLACE INTO pending (key, frame)
        SELECT json_extract(value, '$[0]'), substr(NEW.frames, json_extract(value, '$[1]'), json_extract(value, '$[2]'))
        FROM json_each(NEW.compacted);
    DELETE FROM pending WHERE key IN (SELECT value FROM json_each(NEW.settled));
    INSERT INTO event (id, time, queue_id, frame)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
            substr(NEW.frames, json_extract(value, '$[3]'), json_extract(value, '$[4]'))
        FROM json_each(NEW.events);
    UPDATE counters SET
        offset = NEW.top_offset,
        accepted = accepted + json_extract(NEW.appended, '$.accepted'),
        dispatched = dispatched + json_extract(NEW.appended, '$.dispatched'),
        attempted = attempted + json_extract(NEW.appended, '$.attempted');
    DELETE FROM entry WHERE id IN (
        SELECT entry.id FROM json_each(NEW.accepted) AS range CROSS JOIN entry
        WHERE entry.id BETWEEN json_extract(range.value, '$[0]') AND json_extract(range.value, '$[1]')
    );
    UPDATE counters SET accepted = accepted - changes();
    DELETE FROM entry WHERE id IN (SELECT value FROM json_each(NEW.dispatched));
    UPDATE counters SET dispatched = dispatched - changes();
    DELETE FROM entry WHERE id IN (
        SELECT entry.id FROM json_each(NEW.attempted) AS range CROSS JOIN entry
        WHERE entry.id BETWEEN json_extract(range.value, '$[0]') AND json_extract(range.value, '$[1]')
    );
    UPDATE counters SET attempted = attempted - changes();
END;
"""
INSERT = "INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def shard_base_id(topic: Topic, shard: int) -> int:
    """Lower bound of the shard's entry ids; an entry's id is this number plus its offset."""
    return (_NUMBERS[topic.name] << _SHARD_BITS | shard) << _OFFSET_BITS


def topic_ids(topic: Topic) -> tuple[int, int]:
    """Bounds of the ids of all entries of a topic, both excluded."""
    shards = _NUMBERS[topic.name] << _SHARD_BITS
    return shards << _OFFSET_BITS, shards + (1 << _SHARD_BITS) << _OFFSET_BITS


def offset_of(entry_id: int) -> int:
    return entry_id & _OFFSET_MASK


def topic_number_of(entry_id: int) -> tuple[int, int]:
    """The index in CONSUMED_TOPICS, and the shard."""
    shard_number = entry_id >> _OFFSET_BITS
    return shard_number >> _SHARD_BITS, shard_number & ((1 << _SHARD_BITS) - 1)


def topic_and_shard_of(entry_id: int) -> tuple[Topic, int]:
    number, shard = topic_number_of(entry_id)
    return CONSUMED_TOPICS[number], shard


def compacted_key(topic: Topic, shard: int, key: str) -> str:
    """Key that sorts by topic, shard and key; the topic `queue` has no name in it."""
    return f"{'' if topic is QUEUE else topic.name}{shard:04d}/{key}"


def split_compacted_key(compacted_key: str) -> tuple[str, str, str]:
    """Topic name, shard and key."""
    start, _, key = compacted_key.partition("/")
    return start[:-4] or QUEUE.name, start[-4:], key


@dataclass(frozen=True, slots=True)
class NewEntry:
    """A new entry of the shard at `shard_base`; its offset is assigned at commit. `record`, if given, is
    passed to the shard's owner.

    `content` is stored apart from the frame, in a row of its own. With `content_of` (an entry id; 0: none) the entry
    shares the content of that entry, which must still exist; with a negative id only if the entry exists.
    """

    shard_base: int
    frame: bytes
    content: bytes = b""
    content_of: int = 0
    record: Record | Damaged | None = None


@dataclass(slots=True)
class Change:
    """The changes of one request, committed atomically."""

    entries: list[NewEntry] = field(default_factory=list)
    compacted: dict[str, bytes | None] = field(default_factory=dict)  # compacted_key -> frame, None: settled
    events: list[tuple[int, str, bytes]] = field(default_factory=list)  # (milliseconds, queue id, frame)
    ranges: list[tuple[int, int]] = field(default_factory=list)  # consumed accepted or attempted, by id
    finished: list[int] = field(default_factory=list)  # consumed entries of dispatched
    size_bytes: int = 0

    def add(
        self, records: Sequence[Record], place: Callable[[Record], Place], sources: Mapping[int, int] = NO_SOURCES
    ) -> None:
        """Add records. `sources` maps the identity of content bytes to the stored entry that has them."""
        size = 0
        for record in records:
            frame = encode(record, without_content=True)
            if isinstance(record, Event):
                assert frame is not None
                self.events.append((milliseconds(record.time), record.queue_id, frame))
            else:
                topic, shard, key = place(record)
                if topic.compacted:
                    self.compacted[compacted_key(topic, shard, key)] = frame
                else:
                    assert frame is not None
                    content = inline_content(record)
                    content_of = sources.get(id(content), 0) if content else 0
                    if content_of:
                        content = b""
                    self.entries.append(NewEntry(shard_base_id(topic, shard), frame, content, content_of, record))
                    size += len(content)
            size += 200 if frame is None else len(frame)
        self.size_bytes += size

    def add_reports(self, report: Attempted | Damaged, frames: Sequence[tuple[int, bytes]], content_of: int) -> None:
        """Add (shard, frame) of a report to `attempted`, with the content of another entry."""
        for shard, frame in frames:
            self.entries.append(NewEntry(shard_base_id(ATTEMPTED, shard), frame, b"", content_of, report))
            self.size_bytes += len(frame)


def inline_content(record: object) -> bytes:
    """The content of a record, which is stored apart from its frame."""
    if isinstance(record, Accepted | Dispatched) and isinstance(record.content, Inline):
        return record.content.data
    return b""


def milliseconds(time: datetime) -> int:
    """Milliseconds since 1970."""
    return (time - _EPOCH) // _MILLISECOND


def pack(changes: Sequence[Change], offset: int) -> tuple[Sequence[int], tuple[bytes | str | int, ...]]:
    """Pack the changes: the ids of their entries in order, and the row for INSERT.

    Entries and events are numbered from `offset` + 1; a later queue entry replaces an earlier one.
    """
    frames: list[bytes] = []
    position = 1
    ids: list[int] = []
    entries: list[tuple[int, int, int, int, int]] = []
    bodies: list[tuple[int, int, int, int]] = []
    events: list[tuple[int, int, str, int, int]] = []
    appended = dict.fromkeys(_NUMBERS, 0)
    consumed: dict[str, list[tuple[int, int]]] = {name: [] for name in _NUMBERS}
    finished: list[int] = []
    compacted: dict[str, bytes | None] = {}
    for change in changes:
        for entry in change.entries:
            offset += 1
            entry_id, frame, content, body = entry.shard_base + offset, entry.frame, entry.content, 0
            if content:
                body = offset
                bodies.append((body, zlib.crc32(content), position, len(content)))
                frames.append(content)
                position += len(content)
            ids.append(entry_id)
            entries.append((entry_id, body, entry.content_of, position, len(frame)))
            frames.append(frame)
            position += len(frame)
            appended[topic_and_shard_of(entry_id)[0].name] += 1
        for time, queue_id, frame in change.events:
            offset += 1
            events.append((offset, time, queue_id, position, len(frame)))
            frames.append(frame)
            position += len(frame)
        compacted.update(change.compacted)
        for id_range in change.ranges:
            consumed[topic_and_shard_of(id_range[0])[0].name].append(id_range)
        finished += change.finished
    queue_rows: list[tuple[str, int, int]] = []
    settled: list[str] = []
    for key, frame_or_none in compacted.items():
        if frame_or_none is None:
            settled.append(key)
        else:
            queue_rows.append((key, position, len(frame_or_none)))
            frames.append(frame_or_none)
            position += len(frame_or_none)
    accepted, attempted = consumed[ACCEPTED.name], consumed[ATTEMPTED.name]
    columns = (bodies, entries, queue_rows, settled, events, appended, accepted, finished, attempted)
    return ids, (b"".join(frames), *(orjson.dumps(column).decode() for column in columns), offset)
