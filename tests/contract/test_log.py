"""Log contract for each adapter. A new adapter needs a harness here and nothing else."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, cast

import pytest

from mail.log import Log
from mail.log.embedded import EmbeddedLog, database_thread
from mail.log.embedded.commit import Change, NewEntry, compacted_key, shard_base_id
from mail.log.embedded.store import Store, encode_text
from mail.log.memory import MemoryLog
from mail.log.topics import EVENTS, Topic
from mail.message import QueueId
from mail.settings import LogSettings
from tests.contract.log_contract import Harness, LogContract
from tests.support.builders.records import NOON


class MemoryHarness:
    """The first log object is the store; the settings of the first `make` are used."""

    shards_are_shared = False

    def __init__(self) -> None:
        self._log: MemoryLog | None = None

    async def make(self, settings: LogSettings) -> Log:
        if self._log is None:
            self._log = MemoryLog(settings)
        await self._log.start()
        return self._log

    async def append_frame(self, log: Log, topic: Topic, shard: int, frame: bytes, key: str) -> None:
        assert isinstance(log, MemoryLog)
        if topic.compacted:
            log._compacted[topic.name, shard][key] = frame
        elif topic is EVENTS:
            log._events[QueueId(key)] = [(NOON, frame)]
        else:
            log.append_frame(topic, shard, frame)

    def fail_writes(self, log: Log) -> None:
        assert isinstance(log, MemoryLog)
        log.fail("the disk is broken")

    def repair(self, log: Log) -> None:
        assert isinstance(log, MemoryLog)
        log.fail(None)


class BrokenStore(Store):
    """A disk that fails every write with an I/O error."""

    broken = False

    def __init__(self, *arguments: Any) -> None:
        if self.broken:
            raise sqlite3.OperationalError("disk I/O error")
        super().__init__(*arguments)

    def commit(self, changes: Any) -> list[int]:
        if self.broken:
            raise sqlite3.OperationalError("disk I/O error")
        return super().commit(changes)


class EmbeddedHarness:
    shards_are_shared = False

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        monkeypatch.setattr(BrokenStore, "broken", False)
        monkeypatch.setattr(database_thread, "Store", BrokenStore)

    async def make(self, settings: LogSettings) -> Log:
        log = EmbeddedLog(self._path, settings)
        await log.start()
        return log

    async def append_frame(self, log: Log, topic: Topic, shard: int, frame: bytes, key: str) -> None:
        assert isinstance(log, EmbeddedLog)
        if topic.compacted:
            intact, planted = compacted_key(topic, shard, "planted"), compacted_key(topic, shard, key)
            await log.writer.change(Change(compacted={intact: frame}))
            statement = "UPDATE pending SET key = CAST(? AS TEXT) WHERE key = ?"
            await log.writer.query(
                lambda store: store._connection.execute(statement, (encode_text(planted), intact)).rowcount
            )
            return
        if topic is EVENTS:
            change = Change(events=[(int(NOON.timestamp() * 1000), key, frame)])
        else:
            change = Change(entries=[NewEntry(shard_base_id(topic, shard), frame)])
        await log.writer.change(change)

    def fail_writes(self, log: Log) -> None:
        BrokenStore.broken = True

    def repair(self, log: Log) -> None:
        BrokenStore.broken = False


@pytest.fixture(params=["memory", "embedded"])
def harness(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    match cast("str", request.param):
        case "memory":
            return MemoryHarness()
        case "embedded":
            return EmbeddedHarness(tmp_path / "log.db", monkeypatch)
        case unknown:
            raise ValueError(unknown)


class TestLog(LogContract):
    """The whole contract with every adapter."""
