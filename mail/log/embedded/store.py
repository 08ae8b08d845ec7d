"""SQLite database of the embedded log: one file, one connection, used by one thread.

`commit` is atomic, offsets only rise and are never reused, and the number of shards is fixed when the file is created.
Accepted, dispatched and attempted entries share one table whose integer key combines topic, shard and offset, so the
entries of a shard are adjacent and ordered without an index. Consumed rows are deleted in the consuming transaction.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import TypeVar

import orjson

from mail.log import Backlog, LogUnusable
from mail.log.codec import FrameError, R, UnknownVersion, decode
from mail.log.damaged import HEAD_BYTES, find_id
from mail.log.embedded.commit import INSERT, OFFSET_MAX, UNPACK, Change, compacted_key, pack, shard_base_id, topic_ids
from mail.log.topics import ATTEMPTED, CONSUMED_TOPICS, DISPATCHED, ShardCounts, Topic
from mail.record import Attempted

APPLICATION_ID = 0x65696C70  # "eilp"
SCHEMA = 3

_UNUSED_PAGES = 1000  # not returned to the file system, for the next burst
_VACUUM_PAGES = 500  # per step
_READ_BYTES = 4 << 20  # approximate limit of one read
_CHECKED_BYTES = 256 << 20  # larger databases are not checked at start (the check reads about 1 GB/s)

_CREATE = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (
    id INTEGER PRIMARY KEY, offset INTEGER NOT NULL,
    accepted INTEGER NOT NULL, dispatched INTEGER NOT NULL, attempted INTEGER NOT NULL
);
INSERT INTO counters VALUES (1, 0, 0, 0, 0);
CREATE TABLE entry (id INTEGER PRIMARY KEY, body INTEGER NOT NULL, frame BLOB NOT NULL);
CREATE TABLE body (id INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, content BLOB NOT NULL);
CREATE INDEX entry_body ON entry (body) WHERE body > 0;
CREATE TRIGGER release AFTER DELETE ON entry WHEN OLD.body > 0 BEGIN
    DELETE FROM body WHERE id = OLD.body AND NOT EXISTS (SELECT 1 FROM entry WHERE body = OLD.body AND body > 0); END;
CREATE TABLE pending (key TEXT PRIMARY KEY, frame BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE event (
    id INTEGER PRIMARY KEY, time INTEGER NOT NULL, queue_id TEXT NOT NULL, frame BLOB NOT NULL
);
CREATE INDEX event_queue_id ON event (queue_id);
"""

DAMAGE_ADVICE = (
    "stop eilpost, copy the file and FILE-wal, and recover the records into a new file: docs/troubleshoot.md, "
    '"A damaged log file"; a backup lacks the mail that was accepted after it'
)

Key = TypeVar("Key", int, str)


@dataclass(frozen=True, slots=True)
class EntryRow:
    """A stored entry: id, frame, and the separately stored content (`body` 0: none). Columns of a damaged row may have
    any type: frame and content are always bytes, `body` and `checksum` are only compared.
    """

    id: int
    frame: bytes
    body: int
    checksum: int | None
    content: bytes | None

    @property
    def is_content_intact(self) -> bool:
        return self.content is not None and zlib.crc32(self.content) == self.checksum

    def record(self, kind: type[R]) -> R:
        """Raises FrameError."""
        if not self.body or kind is Attempted:  # a report has the content for the case that it is damaged itself
            return decode(self.frame, kind)
        if self.content is None:
            raise FrameError("its content is missing")
        if not self.is_content_intact:
            raise FrameError("its content is damaged (checksum)")
        return decode(self.frame, kind, self.content)


@dataclass(frozen=True, slots=True)
class EntryRows:
    """`more`: whether others follow."""

    rows: Sequence[EntryRow]
    more: bool


class Store:
    """Every method may raise sqlite3.Error."""

    def __init__(self, path: Path, counts: ShardCounts | None) -> None:
        """Open, recover and check. Without `counts` the file decides.

        Raises LogUnusable when an operator has to act, sqlite3.Error or OSError otherwise.
        """
        self._path = path
        self.location = f"the log at {path}"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.text_factory = _decode_text
        try:
            self._open(counts)
            self._load_counters()
        except BaseException:
            self._connection.close()
            raise
        status = path.stat()
        self._file_id = status.st_dev, status.st_ino
        self._vacuumed = False

    def _open(self, counts: ShardCounts | None) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        if execute("PRAGMA page_count").fetchone()[0] == 0:
            execute("PRAGMA page_size = 8192")  # measured: 10 % less CPU than 4096 with messages of 10 kB
            execute("PRAGMA auto_vacuum = INCREMENTAL")
        elif self._path.stat().st_size <= _CHECKED_BYTES:
            check_result = execute("PRAGMA quick_check(1)").fetchone()[0]
            if check_result != "ok":
                raise LogUnusable(f"{self._path} is damaged ({_one_line(check_result)}): {DAMAGE_ADVICE}")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA temp_store = MEMORY")
        execute("PRAGMA cache_size = -16384")
        execute("PRAGMA wal_autocheckpoint = 2000")
        execute("PRAGMA journal_size_limit = 67108864")
        execute("BEGIN IMMEDIATE")
        try:
            if not execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                self._create(counts or ShardCounts())
            self._check(counts)
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        self._connection.executescript(UNPACK)

    def _create(self, counts: ShardCounts) -> None:
        for statement in _CREATE.split(";\n"):
            self._connection.execute(statement)
        self._connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [("shards", counts.by_queue_id or 1), ("delivery_shards", counts.of_dispatched or 1)],
        )
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _check(self, counts: ShardCounts | None) -> None:
        if self._connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise LogUnusable(f"{self._path} is a database, but not a log of eilpost: set log.url to another file")
        schema = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if schema == 2:
            self._connection.execute("ALTER TABLE line RENAME TO pending")
            self._connection.execute(f"PRAGMA user_version = {(schema := 3)}")
        if schema != SCHEMA:
            raise LogUnusable(
                f"{self._path} has schema {schema} and this eilpost reads {SCHEMA}: use the version that wrote it"
            )
        stored = dict(self._connection.execute("SELECT name, value FROM meta"))
        shards, delivery_shards = stored.get("shards"), stored.get("delivery_shards")
        if not (isinstance(shards, int) and isinstance(delivery_shards, int) and min(shards, delivery_shards) > 0):
            raise LogUnusable(f"{self._path} is damaged (table meta): {DAMAGE_ADVICE}")
        self.counts = ShardCounts(shards, delivery_shards)
        if counts is None:
            return
        for name, count in (("shards", counts.by_queue_id), ("delivery_shards", counts.of_dispatched)):
            if count and stored[name] != count:  # 0: any number
                raise LogUnusable(
                    f"{self._path} was created with log.{name} = {stored[name]}, but the settings have {count}:"
                    f" the number is fixed when a log is created, set log.{name} = {stored[name]}"
                )

    def is_in_place(self) -> bool:
        """Whether the path still names the open file; data written to a removed file is lost."""
        try:
            status = self._path.stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._file_id

    def _load_counters(self) -> None:
        row = self._connection.execute("SELECT offset, accepted, dispatched, attempted FROM counters").fetchone()
        if row is None or not all(isinstance(number, int) for number in row):
            raise LogUnusable(f"{self._path} is damaged (table counters): {DAMAGE_ADVICE}")
        self._offset: int = row[0]
        self.backlog = Backlog(accepted=row[1], dispatched=row[2], attempted=row[3])

    def close(self) -> None:
        self._connection.close()

    # --- writing

    def commit(self, changes: Sequence[Change]) -> Sequence[int]:
        """Commit the changes in one transaction; returns the ids of their entries in order."""
        ids, row = pack(changes, self._offset)
        self._connection.execute(INSERT, row)
        self._load_counters()
        return ids

    def purge_events(self, before: int, limit: int) -> bool:
        """Remove the `limit` oldest events, as far as they precede `before` (milliseconds); returns whether more may
        follow.
        """
        rows = self._connection.execute("SELECT id, time FROM event ORDER BY id LIMIT ?", (limit,)).fetchall()
        old = [event_id for event_id, time in rows if not isinstance(time, int) or time < before]
        if old:
            statement = "DELETE FROM event WHERE id IN (SELECT value FROM json_each(?))"
            self._connection.execute(statement, (orjson.dumps(old).decode(),))
        return len(old) == limit

    def remove_keys(self, raw_keys: Sequence[bytes]) -> None:
        """Remove compacted records by their whole keys, as stored."""
        statement = "DELETE FROM pending WHERE key = CAST(? AS TEXT)"
        self._connection.executemany(statement, [(raw_key,) for raw_key in raw_keys])

    def vacuum(self) -> bool:
        """Return some unused pages to the file system; returns whether there are more."""
        execute = self._connection.execute
        unused = execute("PRAGMA freelist_count").fetchone()[0]
        if unused > _UNUSED_PAGES:
            # Each page is one step of the statement, and only executescript steps it to its end.
            self._connection.executescript(f"PRAGMA incremental_vacuum({min(unused - _UNUSED_PAGES, _VACUUM_PAGES)})")
            self._vacuumed = True
            return True
        if self._vacuumed:
            execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._vacuumed = False
        return False

    # --- reading

    def entries(self, topic: Topic, shard: int, after: int, limit: int) -> EntryRows:
        """The entries of a shard after id `after`, at most `limit` and about 4 MiB."""
        first = shard_base_id(topic, shard)
        return self._entries(max(after, first), first + OFFSET_MAX, limit)

    def all_entries(self, after: int, limit: int) -> Sequence[EntryRow]:
        """As `entries`, of all shards of all topics."""
        return self._entries(after, (1 << 63) - 1, limit).rows

    def _entries(self, after: int, last: int, limit: int) -> EntryRows:
        cursor = self._connection.execute(
            "SELECT entry.id, frame, body, checksum, content FROM entry LEFT JOIN body ON body.id = entry.body"
            " WHERE entry.id > ? AND entry.id <= ? ORDER BY entry.id LIMIT ?",
            (after, last, limit),
        )
        rows: list[EntryRow] = []
        size = 0
        for values in cursor:
            entry_id, frame, body, checksum, content = values
            content = None if content is None else _as_bytes(content)
            rows.append(row := EntryRow(entry_id, _as_bytes(frame), body, checksum, content))
            size += len(row.frame) + len(row.content or b"")
            if size >= _READ_BYTES:
                cursor.close()
                return EntryRows(rows, more=True)
        return EntryRows(rows, more=len(rows) == limit)

    def first_entries(self) -> list[tuple[int, bytes]]:
        """Id and frame, without content, of the first entry of every shard of every topic."""
        entries: list[tuple[int, bytes]] = []
        for topic in CONSUMED_TOPICS:
            for shard in range(self.counts.of(topic)):
                first = shard_base_id(topic, shard)
                rows = self._connection.execute(
                    "SELECT id, frame FROM entry WHERE id > ? AND id <= ? ORDER BY id LIMIT 1",
                    (first, first + OFFSET_MAX),
                )
                entries += [(entry_id, _as_bytes(frame)) for entry_id, frame in rows]
        return entries

    def named_deliveries(self, without: Container[int]) -> set[str]:
        """The delivery ids in the frames of `dispatched` and `attempted`, except in the entries `without`."""
        named: set[str] = set()
        for topic in (DISPATCHED, ATTEMPTED):
            rows = self._connection.execute(
                "SELECT id, substr(frame, 1, ?) FROM entry WHERE id > ? AND id < ?", (HEAD_BYTES, *topic_ids(topic))
            )
            named.update(find_id(_as_bytes(head)) for entry_id, head in rows if entry_id not in without)
        return named

    def has_damaged_reports(self) -> bool:
        """Whether a frame of `dispatched` or `attempted` is damaged."""
        for topic in (DISPATCHED, ATTEMPTED):
            for (frame,) in self._connection.execute(
                "SELECT frame FROM entry WHERE id > ? AND id < ?", topic_ids(topic)
            ):
                try:
                    decode(_as_bytes(frame), topic.record)
                except FrameError:
                    return True
        return False

    def find_dispatches(self, delivery_ids: Container[str]) -> list[EntryRow]:
        """The entries of `dispatched` whose first id is one of these."""
        heads = self._connection.execute(
            "SELECT id, substr(frame, 1, ?) FROM entry WHERE id > ? AND id < ?", (HEAD_BYTES, *topic_ids(DISPATCHED))
        )
        ids = [entry_id for entry_id, head in heads if find_id(_as_bytes(head)) in delivery_ids]
        rows = self._connection.execute(
            "SELECT entry.id, frame, body, checksum, content FROM entry LEFT JOIN body ON body.id = entry.body"
            " WHERE entry.id IN (SELECT value FROM json_each(?)) ORDER BY entry.id",
            (orjson.dumps(ids).decode(),),
        )
        return [
            EntryRow(entry_id, _as_bytes(frame), body, checksum, None if content is None else _as_bytes(content))
            for entry_id, frame, body, checksum, content in rows
        ]

    def compacted(self, topic: Topic, shard: int, after: str, limit: int, prefix: str = "") -> list[tuple[str, bytes]]:
        """The last records of a shard after the key `after` ("": from the start) whose keys begin with `prefix`, in
        order, about 4 MiB.
        """
        first = compacted_key(topic, shard, prefix)
        statement = "SELECT key, frame FROM pending WHERE key > CAST(? AS TEXT) AND key < ? ORDER BY key LIMIT ?"
        end = f"{first}\U0010ffff" if prefix else f"{first[:-1]}0"  # the character after "/": of damaged keys too
        return _bounded(self._connection.execute(statement, (encode_text(max(after, first)), end, limit)))

    def all_queue_entries(self, after: str, limit: int) -> list[tuple[str, bytes]]:
        """As `compacted`, of all shards of `queue`: the only keys that begin with a digit."""
        statement = "SELECT key, frame FROM pending WHERE key > CAST(? AS TEXT) AND key < ':' ORDER BY key LIMIT ?"
        return _bounded(self._connection.execute(statement, (encode_text(after), limit)))

    def all_compacted(self, after: str, limit: int) -> list[tuple[str, bytes]]:
        """As `compacted`, of all topics."""
        statement = "SELECT key, frame FROM pending WHERE key > CAST(? AS TEXT) ORDER BY key LIMIT ?"
        return _bounded(self._connection.execute(statement, (encode_text(after), limit)))

    def all_events(self, after: int, limit: int) -> Sequence[tuple[int, bytes]]:
        return _bounded(self._connection.execute("SELECT id, frame FROM event WHERE id > ? LIMIT ?", (after, limit)))

    def events(self, queue_id: str, after: int, limit: int) -> Sequence[tuple[int, bytes]]:
        statement = "SELECT id, frame FROM event WHERE queue_id = ? AND id > ? ORDER BY id LIMIT ?"
        return _bounded(self._connection.execute(statement, (queue_id, after, limit)))


def is_damage(error: Exception) -> bool:
    """Whether the database is corrupt, so that opening it again does not help."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def open_error(path: Path, error: Exception) -> LogUnusable:
    """LogUnusable for operators, from an error of `Store`."""
    if isinstance(error, LogUnusable):
        return error
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) == ENOSPC:
        return LogUnusable(f"{path}: the disk is full: make room there, or set log.url to a file on another disk")
    if isinstance(error, OSError):
        return LogUnusable(f"{path}: {error.strerror}: check log.url and the permissions of its directory")
    return LogUnusable(f"{path} cannot be opened as a log: {error}: {_advice(error)}")


def _advice(error: Exception) -> str:
    """What to do about an SQLite error. The file has queued mail, so no advice may give it up."""
    if is_damage(error):
        return DAMAGE_ADVICE
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return "check the owner and the permissions of the file, of FILE-wal and FILE-shm, and of its directory"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "another program has it open: close that program"
        case sqlite3.SQLITE_IOERR:
            return "check the disk, the file system and the permissions of the directory; keep the file"
        case _:
            return "keep the file, it has the queued mail; if the cause is not clear, report this line"


def newer_version(location: str, position: str, reason: UnknownVersion) -> LogUnusable:
    """LogUnusable for operators about an entry at `position` that a newer eilpost wrote."""
    return LogUnusable(f"{location}: the entry at {position} cannot be read: {reason}; it stays in the log")


def _one_line(text: str) -> str:
    return " ".join(text.replace("*", " ").split())


def _decode_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")  # a damaged row


def encode_text(text: str) -> bytes:
    """The bytes of a text column; a damaged one need not be UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _as_bytes(value: object) -> bytes:
    """A column of bytes; of a damaged row it may have another type."""
    if isinstance(value, bytes):
        return value
    return b"" if value is None else encode_text(str(value))


def _bounded(cursor: Iterable[tuple[Key, object]]) -> list[tuple[Key, bytes]]:
    rows: list[tuple[Key, bytes]] = []
    size = 0
    for key, value in cursor:
        frame = _as_bytes(value)
        rows.append((key, frame))
        size += len(frame)
        if size >= _READ_BYTES:
            break
    return rows
