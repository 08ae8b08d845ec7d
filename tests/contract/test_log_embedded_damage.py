"""A damaged, removed or lost file of the embedded log: no mail is accepted into a file that cannot be read."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import sqlite3
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from mail.log import Damaged, DeliveryShard, Down, LogUnavailable, LogUnusable, RouterShard, Usable
from mail.log.embedded import EmbeddedHistory, EmbeddedLog
from mail.log.embedded.store import Store, open_error
from mail.log.topics import ShardCounts
from mail.message import QueueId
from mail.record import Accepted
from mail.settings import LogSettings
from tests.contract.log_contract.harness import read_inputs, replay_all, router_shard_of
from tests.contract.test_log_embedded import running
from tests.support.builders.records import accepted, queue_entry, queue_id
from tests.support.servers.ports import wait_until

PAGE = 8192


async def filled(path: Path) -> None:
    async with running(path) as log, router_shard_of(log) as router:
        await asyncio.gather(*(log.append(accepted(n, bytes(3000))) for n in range(100)))
        await router.commit([queue_entry(n) for n in range(500)], [])


def overwrite(path: Path, *, spare: int = 2) -> None:
    """Overwrite every page except the first ones with noise."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(spare * PAGE)
        file.write(os.urandom(size - spare * PAGE))


async def test_a_damaged_file_is_reported_at_start_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await filled(path)
    overwrite(path)
    before = path.read_bytes()
    with pytest.raises(LogUnusable, match=rf"{path} is damaged .*: stop eilpost, copy the file"):
        await EmbeddedLog(path, LogSettings()).start()
    assert path.read_bytes() == before


async def test_damage_found_later_stops_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await filled(path)
    async with running(path) as log:
        # SQLite's own error: a page of the table is noise, and the page cache is empty.
        overwrite(path, spare=4)
        await log.writer.query(lambda store: store._connection.execute("PRAGMA shrink_memory").fetchall())
        with pytest.raises(LogUnavailable, match="malformed"):
            async for _ in log.queue_entries():
                pass
        await asyncio.sleep(1.2)  # longer than the interval of reopening
        condition = log.condition()
        assert isinstance(condition, Down)
        assert "is damaged" in condition.reason
        with pytest.raises(LogUnavailable, match="is damaged"):
            await log.append(accepted(999))


async def test_a_query_of_a_damaged_file_fails_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await filled(path)
    with sqlite3.connect(path) as connection:  # a table without pages: the checked pages are intact
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET rootpage = 99999 WHERE name = 'event'")
    connection.close()
    with pytest.raises(LogUnusable, match=str(path)):
        async for _ in EmbeddedHistory(path).history(queue_id(1)):
            pass


async def test_a_removed_file_makes_the_log_down_until_it_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with running(path) as log:
        await log.append(accepted(1))
        aside = tmp_path / "aside"
        path.rename(aside)
        await wait_until(lambda: isinstance(log.condition(), Down), what="the log to notice")
        condition = log.condition()
        assert isinstance(condition, Down)
        assert f"{path} was removed or replaced" in condition.reason
        aside.rename(path)
        await wait_until(lambda: isinstance(log.condition(), Usable), what="the log to come back")


async def test_an_empty_log_in_a_used_directory_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with structlog.testing.capture_logs() as lines:
        await filled(path)
    assert not [line for line in lines if line["log_level"] == "error"]
    path.unlink()
    with structlog.testing.capture_logs() as lines:
        async with running(path):
            pass
    (line,) = (line for line in lines if line["log_level"] == "error")
    assert "missing or empty" in line["event"]
    assert "log.url" in line["advice"]


async def test_a_first_start_on_a_full_disk_names_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.db"

    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    create = Store._create

    def cramped(store: Store, counts: ShardCounts) -> None:
        store._connection.execute("PRAGMA max_page_count = 2")
        create(store, counts)

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(Store, "_create", cramped)
    with pytest.raises(LogUnusable, match=r"log\.db: the disk is full: make room there, or set log\.url"):
        await EmbeddedLog(path, LogSettings()).start()
    monkeypatch.setattr(Store, "_create", create)
    async with running(path):  # the owner's id is informational; the log works without it
        pass


async def test_a_slow_router_commit_does_not_time_out(tmp_path: Path) -> None:
    """No client waits for it, and a retry would take as long again."""
    release, hangs = threading.Event(), threading.Event()
    async with running(tmp_path / "log.db", LogSettings(append_timeout=timedelta(milliseconds=200))) as log:
        await log.append(accepted(1))
        async with router_shard_of(log) as shard:
            entries = await read_inputs(shard, 1)
            blocked = log.writer.query(lambda _: (hangs.set(), release.wait(20)))
            await wait_until(hangs.is_set)
            commit = asyncio.ensure_future(shard.commit([queue_entry(1)], entries))
            with pytest.raises(LogUnavailable):
                await log.append(accepted(2))
            await asyncio.gather(blocked, return_exceptions=True)
            assert isinstance(log.condition(), Down)
            assert not commit.done()
            release.set()
            await commit
            assert (await log.backlog()).accepted == 0
            assert [record async for record in log.queue_entries()] == [queue_entry(1)]


async def test_small_reads_from_the_file_are_complete_and_in_order(tmp_path: Path) -> None:
    async with running(tmp_path / "log.db") as log:
        for number in range(30):
            await log.append(accepted(number))
        records: list[Accepted] = []
        async with router_shard_of(log) as shard:
            for number in range(30, 60):
                records += [
                    entry.record for entry in await shard.read(3, timedelta(0)) if isinstance(entry.record, Accepted)
                ]
                await log.append(accepted(number))
            while more := await shard.read(7, timedelta(0)):
                records += [entry.record for entry in more if isinstance(entry.record, Accepted)]
        assert records == [accepted(number) for number in range(60)]


async def test_an_exception_on_the_thread_ends_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_store: Store) -> bool:
        raise ZeroDivisionError("a bug")

    async with running(tmp_path / "log.db") as log:
        await log.append(accepted(1))
        stop = asyncio.Event()

        async def process(shard: RouterShard | DeliveryShard) -> None:
            await stop.wait()

        owners = [
            asyncio.ensure_future(log.own_router_shards(process, stop)),
            asyncio.ensure_future(log.own_delivery_shards(process, stop)),
        ]
        monkeypatch.setattr(Store, "vacuum", broken)
        results = await asyncio.wait_for(asyncio.gather(*owners, return_exceptions=True), 20)
        assert [str(result) for result in results] == ["the thread of the log ended: ZeroDivisionError: a bug"] * 2
        condition = log.condition()
        assert isinstance(condition, Down)
        assert condition.reason == "the thread of the log ended: ZeroDivisionError: a bug"
        with pytest.raises(LogUnavailable, match="the thread of the log ended"):
            await log.append(accepted(2))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE counters SET offset = 'text'",
        "UPDATE counters SET accepted = x'00'",
        "DELETE FROM counters",
        "UPDATE meta SET value = 'text' WHERE name = 'shards'",
        "UPDATE meta SET value = -1 WHERE name = 'delivery_shards'",
        "DELETE FROM meta",
    ],
)
async def test_numbers_of_a_wrong_type_are_reported_with_one_line(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "log.db"
    await filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(LogUnusable, match=rf"{path} is damaged \(table (counters|meta)\): stop eilpost, copy the file"):
        await EmbeddedLog(path, LogSettings()).start()


async def test_rows_of_a_wrong_type_stop_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await filled(path)
    statements = (
        "UPDATE entry SET frame = 17, body = 'text' WHERE id % 3 = 0",
        "UPDATE entry SET frame = CAST(x'ff00fe' AS TEXT) WHERE id % 3 = 1",
        "UPDATE pending SET frame = 1.5 WHERE key LIKE '%1-1'",
        "UPDATE pending SET frame = CAST(x'ff' AS TEXT) WHERE key LIKE '%2-1'",
        "UPDATE pending SET key = CAST(x'303030302fff' AS TEXT) WHERE key = (SELECT max(key) FROM pending)",
        "INSERT INTO event VALUES (1, 'text', '01', 17)",
    )
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    async with running(path) as log, router_shard_of(log) as router:
        inputs = await read_inputs(router, 100)
        assert 60 < sum(isinstance(entry.record, Damaged) for entry in inputs) < 70
        replayed = await replay_all(router)
        assert len(replayed) == 500
        assert sum(isinstance(entry, Damaged) for entry in replayed) > 25
        assert await log.oldest_unconsumed() is not None
        await log.purge()
        assert [each async for each in log.history(QueueId("01"))] == []  # its time is no number: it was purged


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (sqlite3.SQLITE_READONLY, "check the owner and the permissions"),
        (sqlite3.SQLITE_CANTOPEN, "check the owner and the permissions"),
        (sqlite3.SQLITE_BUSY, "another program has it open"),
        (sqlite3.SQLITE_IOERR, "check the disk"),
        (sqlite3.SQLITE_CORRUPT, "recover the records into a new file"),
        (sqlite3.SQLITE_ERROR, "keep the file"),
    ],
)
def test_no_advice_gives_the_queued_mail_up(code: int, advice: str) -> None:
    error = sqlite3.OperationalError("text of SQLite")
    error.sqlite_errorcode = code
    line = str(open_error(Path("var/log.db"), error))
    assert advice in line
    assert not {"away", "empty", "delete", "remove"} & set(re.findall(r"\w+", line))
