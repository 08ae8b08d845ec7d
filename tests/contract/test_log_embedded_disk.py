"""Embedded log on a full, failing or hanging disk: reported in time, nothing lost, recovery without a restart."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from mail.log import Backlog, Down, Full, LogUnavailable, Usable
from mail.log.embedded.database_thread import DatabaseThread
from mail.log.embedded.store import EntryRows, Store
from mail.log.topics import ACCEPTED, Topic
from mail.record import Accepted
from mail.settings import LogSettings
from tests.contract.log_contract.harness import read_inputs, router_shard_of
from tests.support.builders.records import accepted, attempted, queue_id
from tests.support.servers.embedded_log import running
from tests.support.servers.listener import settle
from tests.support.servers.ports import wait_until

pytestmark = pytest.mark.slow


async def test_low_disk_space_refuses_new_mail(path: Path) -> None:
    async with running(path, LogSettings(min_free_disk=1 << 60)) as log:
        condition = log.condition()
        assert isinstance(condition, Full)
        assert str(path.parent) in condition.reason
        await log.append(accepted())  # an append in progress is accepted


async def test_a_full_disk_loses_nothing_and_recovers(path: Path) -> None:
    async with running(path) as log:
        await log.append(accepted(1))
        # SQLite's own limit causes its genuine "database or disk is full".
        await log.writer.query(lambda store: store._connection.execute("PRAGMA max_page_count = 20").fetchone())
        with pytest.raises(LogUnavailable, match="full"):
            await log.append(accepted(2, bytes(1_000_000)))
        await wait_until(lambda: isinstance(log.condition(), Usable))
        await log.append(accepted(3))
        async with router_shard_of(log) as shard:
            entries = await read_inputs(shard, 2)
        assert [entry.record for entry in entries] == [accepted(1), accepted(3)]


async def test_a_hanging_disk_times_out_and_late_appends_are_not_made(path: Path) -> None:
    release, hangs = threading.Event(), threading.Event()
    async with running(path, LogSettings(append_timeout=timedelta(milliseconds=300))) as log:
        blocked = log.writer.query(lambda _: (hangs.set(), release.wait(20)))
        await wait_until(hangs.is_set)
        with pytest.raises(LogUnavailable):
            await log.append(accepted(1))
        assert isinstance(log.condition(), Down)
        with pytest.raises(LogUnavailable):
            await blocked
        release.set()
        await wait_until(lambda: isinstance(log.condition(), Usable))
        await log.append(accepted(2))
        async with router_shard_of(log) as shard:
            assert [entry.record for entry in await read_inputs(shard, 1)] == [accepted(2)]


async def test_the_log_recovers_from_a_hang_outside_of_requests(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All waiting requests time out; the log works afterwards."""
    release, hangs = threading.Event(), threading.Event()
    check = DatabaseThread._check_disk

    def hang(self: DatabaseThread) -> None:
        if hangs.is_set():
            hangs.clear()
            release.wait(20)
        check(self)

    monkeypatch.setattr(DatabaseThread, "_check_disk", hang)
    async with running(path, LogSettings(append_timeout=timedelta(milliseconds=300))) as log:
        hangs.set()
        await wait_until(lambda: not hangs.is_set())  # the thread checks the disk when it is idle
        with pytest.raises(LogUnavailable):
            await log.append(accepted(1))
        assert isinstance(log.condition(), Down)
        release.set()
        await wait_until(lambda: isinstance(log.condition(), Usable))
        await log.append(accepted(2))
        async with router_shard_of(log) as shard:
            assert [entry.record for entry in await read_inputs(shard, 1)] == [accepted(2)]


async def test_queued_bytes_are_bounded(path: Path) -> None:
    release = threading.Event()
    content = bytes(1 << 20)
    async with running(path) as log:
        blocked = log.writer.query(lambda _: release.wait(20))
        tasks = [asyncio.ensure_future(log.append(accepted(n, content))) for n in range(80)]
        await settle()
        assert log.writer._queued_bytes < 34 << 20
        release.set()
        await blocked
        await asyncio.gather(*tasks)
        async with router_shard_of(log) as shard:
            assert len(await read_inputs(shard, 80)) == 80


async def test_the_files_shrink_after_consumption(path: Path) -> None:
    content = bytes(100_000)
    async with running(path) as log:
        for _ in range(8):
            await asyncio.gather(*(log.append(accepted(n, content)) for n in range(100)))
        async with router_shard_of(log) as shard:
            await shard.commit([], await read_inputs(shard, 800, limit=1000))
        await wait_until(lambda: sum(f.stat().st_size for f in path.parent.iterdir()) <= 24 << 20)


async def test_memory_and_database_return_each_entry_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # About ten entries, so that reads alternate between memory and database.
    monkeypatch.setattr("mail.log.embedded.READER_BUFFER_BYTES", 20_000)
    total = 2000
    async with running(path) as log, router_shard_of(log) as shard:
        numbers = iter(range(total))
        order: list[str] = []

        async def append() -> None:
            for n in numbers:
                await log.append(accepted(n, bytes(1500)))
                order.append(queue_id(n))

        appends = asyncio.gather(*(append() for _ in range(30)))
        offsets: list[int] = []
        ids: list[str] = []
        while len(ids) < total:
            entries = await shard.read(len(ids) % 40 + 1, timedelta(seconds=5))
            assert entries
            offsets += [entry.offset for entry in entries]
            ids += [entry.record.message.queue_id for entry in entries if isinstance(entry.record, Accepted)]
            if len(ids) % 3:
                await shard.commit([], entries)
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(0.002)
                await shard.commit([], entries)
        await appends
        assert offsets == sorted(set(offsets))
        assert sorted(ids) == [queue_id(n) for n in range(total)]
        assert not await shard.read(1, timedelta(0))


async def test_a_failing_disk_is_down_until_it_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(path) as log:
        await log.append(accepted(1))

        def broken(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as broken_disk:
            broken_disk.setattr("mail.log.embedded.store.Store._open", broken)
            broken_disk.setattr("mail.log.embedded.store.Store.commit", broken)
            for _ in range(3):
                with pytest.raises(LogUnavailable, match="disk I/O error"):
                    await log.append(accepted(2))
            condition = log.condition()
            assert isinstance(condition, Down)
            assert str(path) in condition.reason
        await wait_until(lambda: isinstance(log.condition(), Usable))
        await log.append(accepted(3))
        async with router_shard_of(log) as shard:
            assert [entry.record for entry in await read_inputs(shard, 2)] == [accepted(1), accepted(3)]


async def test_a_failed_read_loses_no_entries(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(path) as log:
        await log.append(accepted(1))
        await log.append(attempted(2))
        read_entries = Store.entries
        failures = iter([True])

        def fails_once(store: Store, topic: Topic, shard: int, after: int, limit: int) -> EntryRows:
            if topic is ACCEPTED and next(failures, False):
                raise sqlite3.OperationalError("disk I/O error")
            return read_entries(store, topic, shard, after, limit)

        monkeypatch.setattr(Store, "entries", fails_once)
        async with router_shard_of(log) as shard:
            entries = [*await read_inputs(shard, 1)]
            assert [entry.record for entry in entries] == [attempted(2)]
            entries += await read_inputs(shard, 1)
            assert [entry.record for entry in entries] == [attempted(2), accepted(1)]
            await shard.commit([], entries)
            assert await log.backlog() == Backlog(0, 0, 0)
