"""Damage to the file of an embedded log that no process uses: some bytes of a row are overwritten."""

from __future__ import annotations

import random
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from mail.log.embedded.commit import topic_ids
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED

BYTES = 12
_QUEUE_ID = re.compile(rb'"([0-9A-Z]{26})[-"]')


@dataclass(slots=True)
class Damage:
    """What was damaged: the number of rows by topic, the queue ids in them, and those of damaged rows of `accepted`."""

    rows: dict[str, int] = field(default_factory=dict)
    queue_ids: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)


def damage_rows(path: Path, chance: random.Random, damage: Damage, *, rows_max: int = 3) -> None:
    """Overwrite bytes in up to `rows_max` rows of each topic."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for topic in (ACCEPTED, DISPATCHED, ATTEMPTED):
            rows = connection.execute(
                "SELECT id, frame FROM entry WHERE id > ? AND id < ?", topic_ids(topic)
            ).fetchall()
            for entry_id, frame in _some(rows, chance, rows_max):
                connection.execute("UPDATE entry SET frame = ? WHERE id = ?", (_overwrite(frame, chance), entry_id))
                queue_id = _count(damage, topic.name, frame)
                if topic is ACCEPTED:
                    damage.accepted.add(queue_id)
        for key, frame in _some(connection.execute("SELECT key, frame FROM pending").fetchall(), chance, rows_max):
            connection.execute("UPDATE pending SET frame = ? WHERE key = ?", (_overwrite(frame, chance), key))
            _count(damage, "queue", frame)
        for event_id, frame in _some(
            connection.execute("SELECT id, frame FROM event LIMIT 1000").fetchall(), chance, rows_max
        ):
            connection.execute("UPDATE event SET frame = ? WHERE id = ?", (_overwrite(frame, chance), event_id))
            damage.rows["events"] = damage.rows.get("events", 0) + 1


def _some(rows: list[tuple[object, ...]], chance: random.Random, count: int) -> list[tuple[object, ...]]:
    return chance.sample(rows, min(count, len(rows)))


def _count(damage: Damage, topic: str, frame: object) -> str:
    """The queue id, "" if the row was damaged before."""
    assert isinstance(frame, bytes)
    damage.rows[topic] = damage.rows.get(topic, 0) + 1
    match = _QUEUE_ID.search(frame)
    queue_id = "" if match is None else match[1].decode()
    damage.queue_ids.add(queue_id)
    return queue_id


def _overwrite(frame: object, chance: random.Random) -> bytes:
    assert isinstance(frame, bytes)
    start = chance.randrange(len(frame))
    return frame[:start] + chance.randbytes(BYTES) + frame[start + BYTES :]
