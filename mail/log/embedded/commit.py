"""One commit as one statement: a batch of changes goes into the database packed, and is taken apart there.

In charge of how changes become rows. The database's thread gives up the interpreter lock at every statement and has to
fight the event loop for it afterwards: measured under load, a commit of a dozen statements cost both of them more than
the rows did. So a batch goes in as one row of a view, its frames joined and its numbers in JSON, and the view's trigger
does the rest. One statement outside a transaction is a transaction of its own: all or nothing, flushed once.

View and trigger are temporary, the connection's own: the file knows nothing of them.

Content is written once. An entry's inline content is a row of its own; the Dispatched that follows from an Accepted
names the row of its input, and the row goes with the last entry that names it. Never here: SQLite's connection,
threads.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, Topic

_OFFSET_BITS = 50
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_SHARD_BITS = 11
_TOPICS = (ACCEPTED, DISPATCHED, ATTEMPTED)  # in the order of their numbers, which are in the file
_NUMBERS = {topic.name: number for number, topic in enumerate(_TOPICS)}

OFFSET_MAX = _OFFSET_MASK

# `bodies` are [id, checksum, place, length], `entries` [id, body, entry with the same body, place, length] (0: none),
# `lines` [key, place, length], `events` [id, time, queue id, place, length], where the place (from 1) and the length
# are those of the bytes in `frames`; `accepted` and `attempted` are runs of consumed ids, [first, last]; `dispatched`
# are consumed ids; `arrived` is how many entries of each topic come in. An entry that shares the body of one that is
# not there gets NULL, which the table refuses, and the whole batch with it.
UNPACK = """
CREATE TEMP VIEW batch (
    frames, bodies, entries, lines, settled, events, arrived, accepted, dispatched, attempted, top_offset
) AS SELECT 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0;

CREATE TEMP TRIGGER unpack INSTEAD OF INSERT ON batch BEGIN
    INSERT INTO body (id, checksum, content)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
            substr(NEW.frames, json_extract(value, '$[2]'), json_extract(value, '$[3]'))
        FROM json_each(NEW.bodies);
    INSERT INTO entry (id, body, frame)
        SELECT json_extract(value, '$[0]'),
            CASE json_extract(value, '$[2]') WHEN 0 THEN json_extract(value, '$[1]')
                ELSE (SELECT body FROM entry AS other WHERE other.id = json_extract(value, '$[2]')) END,
            substr(NEW.frames, json_extract(value, '$[3]'), json_extract(value, '$[4]'))
        FROM json_each(NEW.entries);
    INSERT OR REPLACE INTO line (key, frame)
        SELECT json_extract(value, '$[0]'), substr(NEW.frames, json_extract(value, '$[1]'), json_extract(value, '$[2]'))
        FROM json_each(NEW.lines);
    DELETE FROM line WHERE key IN (SELECT value FROM json_each(NEW.settled));
    INSERT INTO event (id, time, queue_id, frame)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
            substr(NEW.frames, json_extract(value, '$[3]'), json_extract(value, '$[4]'))
        FROM json_each(NEW.events);
    UPDATE counters SET
        offset = NEW.top_offset,
        accepted = accepted + json_extract(NEW.arrived, '$[0]'),
        dispatched = dispatched + json_extract(NEW.arrived, '$[1]'),
        attempted = attempted + json_extract(NEW.arrived, '$[2]');
    DELETE FROM entry WHERE id IN (
        SELECT entry.id FROM json_each(NEW.accepted) AS run CROSS JOIN entry
        WHERE entry.id BETWEEN json_extract(run.value, '$[0]') AND json_extract(run.value, '$[1]')
    );
    UPDATE counters SET accepted = accepted - changes();
    DELETE FROM entry WHERE id IN (SELECT value FROM json_each(NEW.dispatched));
    UPDATE counters SET dispatched = dispatched - changes();
    DELETE FROM entry WHERE id IN (
        SELECT entry.id FROM json_each(NEW.attempted) AS run CROSS JOIN entry
        WHERE entry.id BETWEEN json_extract(run.value, '$[0]') AND json_extract(run.value, '$[1]')
    );
    UPDATE counters SET attempted = attempted - changes();
END;
"""
INSERT = "INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def shard_base_id(topic: Topic, shard: int) -> int:
    """Below every entry of the shard; `+ offset` is an entry."""
    return (_NUMBERS[topic.name] << _SHARD_BITS | shard) << _OFFSET_BITS


def offset_of(entry_id: int) -> int:
    return entry_id & _OFFSET_MASK


def topic_and_shard_of(entry_id: int) -> tuple[str, int]:
    """Topic name and shard of an entry."""
    shard_number = entry_id >> _OFFSET_BITS
    return _TOPICS[shard_number >> _SHARD_BITS].name, shard_number & ((1 << _SHARD_BITS) - 1)


def pending_key(shard: int, key: str) -> str:
    """Queue lines of one shard stand together, in the order of their queue ids."""
    return f"{shard:04d}/{key}"


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry to be written below `first` (its `first_id`); its offset is given at commit.

    `content` is kept apart from the frame, as a row of its own; or the entry `shares` that of another one (an id; 0:
    none), which must be there still.
    """

    shard_base: int
    frame: bytes
    content: bytes = b""
    content_of: int = 0


@dataclass(slots=True)
class Change:
    """What one request wants durable: all of it or nothing."""

    entries: list[NewEntry] = field(default_factory=list)
    pending: dict[str, bytes | None] = field(default_factory=dict)  # line_key -> frame, None: settled
    events: list[tuple[int, str, bytes]] = field(default_factory=list)  # (milliseconds, queue id, frame)
    ranges: list[tuple[int, int]] = field(default_factory=list)  # accepted or attempted consumed, from id to id
    finished: list[int] = field(default_factory=list)  # dispatched consumed, one by one
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes, packed. `ids` are those of their entries, in their order; `row` is what INSERT takes."""

    ids: Sequence[int]
    row: tuple[bytes | str | int, ...]


def pack(changes: Sequence[Change], offset: int) -> Batch:
    """The changes as one row, their entries and events numbered from behind `offset`; a later line replaces an earlier
    one.
    """
    frames: list[bytes] = []
    position = 1
    ids: list[int] = []
    entries: list[tuple[int, int, int, int, int]] = []
    bodies: list[tuple[int, int, int, int]] = []
    events: list[tuple[int, int, str, int, int]] = []
    appended = [0, 0, 0]
    consumed: tuple[list[tuple[int, int]], ...] = ([], [], [])
    finished: list[int] = []
    pending: dict[str, bytes | None] = {}
    for change in changes:
        for entry in change.entries:
            offset += 1
            number, frame, content, body = entry.shard_base + offset, entry.frame, entry.content, 0
            if content:
                body = offset
                bodies.append((body, zlib.crc32(content), position, len(content)))
                frames.append(content)
                position += len(content)
            ids.append(number)
            entries.append((number, body, entry.content_of, position, len(frame)))
            frames.append(frame)
            position += len(frame)
            appended[entry.shard_base >> _OFFSET_BITS + _SHARD_BITS] += 1
        for time, queue_id, frame in change.events:
            offset += 1
            events.append((offset, time, queue_id, position, len(frame)))
            frames.append(frame)
            position += len(frame)
        pending.update(change.pending)
        for id_range in change.ranges:
            consumed[id_range[0] >> _OFFSET_BITS + _SHARD_BITS].append(id_range)
        finished += change.finished
    open_rows: list[tuple[str, int, int]] = []
    settled: list[str] = []
    for key, frame_or_none in pending.items():
        if frame_or_none is None:
            settled.append(key)
        else:
            open_rows.append((key, position, len(frame_or_none)))
            frames.append(frame_or_none)
            position += len(frame_or_none)
    accepted, _, attempted = consumed
    columns = (bodies, entries, open_rows, settled, events, appended, accepted, finished, attempted)
    return Batch(ids, (b"".join(frames), *(orjson.dumps(column).decode() for column in columns), offset))
