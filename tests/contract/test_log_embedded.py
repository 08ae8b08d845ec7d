"""Embedded log: its file, lock, disk and query socket."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from mail.log import LogUnusable
from mail.log.embedded import EmbeddedHistory, EmbeddedLog
from mail.log.embedded.store import Store
from mail.record import Accepted
from mail.settings import LogSettings
from tests.contract.log_contract.harness import delivery_shard_of, read_dispatches, router_shard_of
from tests.support.builders.records import accepted, event, queue_entry, queue_id
from tests.support.servers.embedded_log import running

ROOT = Path(__file__).parents[2]


# --- opening


async def test_a_second_process_is_refused_with_the_owners_id(path: Path) -> None:
    async with running(path):
        with pytest.raises(LogUnusable, match=rf"another eilpost process \({os.getpid()}\).*{path.parent}"):
            await EmbeddedLog(path, LogSettings()).start()
    async with running(path):  # the lock is free again
        pass


async def test_files_are_for_their_owner_only(path: Path) -> None:
    async with running(path) as log:
        await log.append(accepted())
        for name in ("log.db", "log.db-wal", "log.db.lock", "log.db.sock"):
            assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600, name


@pytest.mark.parametrize("key", ["shards", "delivery_shards"])
async def test_the_number_of_shards_is_fixed(path: Path, key: str) -> None:
    async with running(path):
        pass
    with pytest.raises(LogUnusable, match=rf"log\.{key} = 1, but the settings have 4"):
        await EmbeddedLog(path, LogSettings.model_validate({key: 4})).start()
    async with running(path):
        pass


async def test_a_newer_schema_is_refused(path: Path) -> None:
    async with running(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(LogUnusable, match="schema 99"):
        await EmbeddedLog(path, LogSettings()).start()


async def test_a_log_of_the_previous_schema_is_converted(path: Path) -> None:
    async with running(path) as log:
        await _fill(log)
    with sqlite3.connect(path) as connection:
        connection.executescript("ALTER TABLE pending RENAME TO line; PRAGMA user_version = 2")
    connection.close()
    async with running(path) as log:
        assert len([entry async for entry in log.queue_entries()]) == 600


async def test_another_programs_database_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(LogUnusable, match="not a log of eilpost"):
        await EmbeddedLog(path, LogSettings()).start()


async def test_a_corrupt_file_is_named(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 1000)
    with pytest.raises(LogUnusable, match=re.escape(str(path))):
        await EmbeddedLog(path, LogSettings()).start()
    assert path.read_bytes().startswith(b"this is")


async def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnusable, match="file"):
        await EmbeddedLog(tmp_path / "file" / "log.db", LogSettings()).start()


# --- the query socket


async def _fill(log: EmbeddedLog) -> None:
    await log.append(accepted(5))
    async with router_shard_of(log) as shard:
        await shard.commit([queue_entry(n) for n in range(600)] + [event(1), event(1)], [])


async def _query_all(history: EmbeddedHistory) -> None:
    assert [e async for e in history.history(queue_id(1))] == [event(1), event(1)]
    assert [e async for e in history.history(queue_id(2))] == []
    assert len([entry async for entry in history.queue_entries()]) == 600
    assert list(await history.unrouted_messages(queue_id(5))) == [accepted(5)]
    assert (await history.backlog()).accepted == 1


@pytest.mark.parametrize("depth", [0, 12])
async def test_queries_work_while_the_log_runs_and_after(tmp_path: Path, depth: int) -> None:
    path = tmp_path.joinpath(*["a-long-directory-name"] * depth, "log.db")  # longer than sun_path
    history = EmbeddedHistory(path)
    async with running(path, LogSettings(shards=2)) as log:
        await _fill(log)
        await _query_all(history)
    await _query_all(history)
    async with running(path, LogSettings(shards=2)):  # the query released the lock
        pass


async def test_queue_entries_of_one_message_do_not_read_the_whole_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "log.db") as log:
        await log.append(queue_entry(3))
        monkeypatch.setattr(Store, "all_queue_entries", lambda *_: pytest.fail("the whole queue was read"))
        for history in (log, EmbeddedHistory(tmp_path / "log.db")):
            assert [entry async for entry in history.queue_entries(queue_id(3))] == [queue_entry(3)]


async def test_another_process_queries_the_log(path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from mail.log.embedded import EmbeddedHistory\n"
        "async def main():\n"
        "    print(len([entry async for entry in EmbeddedHistory(Path(sys.argv[1])).queue_entries()]))\n"
        "asyncio.run(main())"
    )
    async with running(path, LogSettings(shards=2)) as log:
        await _fill(log)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(path), stdout=subprocess.PIPE, cwd=ROOT
        )
        out, _ = await process.communicate()
    assert out.strip() == b"600"


async def test_a_missing_log_is_reported_and_not_created(path: Path) -> None:
    with pytest.raises(LogUnusable, match="there is no log at"):
        await EmbeddedHistory(path).backlog()
    assert list(path.parent.iterdir()) == []


async def test_a_query_of_a_corrupt_file_fails_with_one_line(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 1000)
    with pytest.raises(LogUnusable, match=re.escape(str(path))):
        await EmbeddedHistory(path).backlog()


async def test_invalid_and_unresponsive_query_clients_are_harmless(path: Path) -> None:
    async with running(path, LogSettings(shards=2)) as log:
        await _fill(log)
        idle_clients = []
        for request in (b"\n", b"x" * 100_000, b'{"kind": 5}\n', b"[]\n", b"\xff\n", b'{"kind": "queue"}\n'):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, str(path) + ".sock")
            with suppress(OSError):
                await loop.sock_sendall(client, request)
            idle_clients.append(client)  # and never reads
        await _query_all(EmbeddedHistory(path))
        await log.append(accepted(6))
        for client in idle_clients:
            client.close()


# --- SIGKILL

_VICTIM = """
import asyncio, sys
from pathlib import Path
from mail.log.embedded import EmbeddedLog
from mail.settings import LogSettings
from mail.message import delivery_id
from mail.record import Delivery, Dispatched, Active, QueueEntry
from tests.support.builders.records import NOON, RELAY, accepted
from datetime import timedelta

async def main(path, start):
    log = EmbeddedLog(path, LogSettings())
    await log.start()
    numbers = iter(range(start, start + 1_000_000))
    async def append():
        for n in numbers:
            await log.append(accepted(n, bytes(3000)))
            sys.stdout.write(f"a{n}\\n"); sys.stdout.flush()
    async def route(shard):
        while True:
            entries = await shard.read(50, timedelta(seconds=1))
            records = []
            for entry in entries:
                message = entry.record.message
                delivery = Delivery(delivery_id(message.queue_id, 1), message, RELAY)
                records += [QueueEntry(delivery, Active(NOON), None), Dispatched(delivery, 1, entry.record.content)]
            await shard.commit(records, entries)
    await asyncio.gather(log.own_router_shards(route, asyncio.Event()), *(append() for _ in range(10)))

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.slow
async def test_sigkill_loses_no_append_and_leaves_no_partial_commit(path: Path) -> None:
    confirmed: set[int] = set()
    start = 0
    for round_number in range(6):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _VICTIM, str(path), str(start), stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        first = await process.stdout.readline()
        assert first, "the victim did not start"
        await asyncio.sleep(0.02 + 0.037 * round_number)
        os.kill(process.pid, signal.SIGKILL)
        lines = (first + await process.stdout.read()).decode().splitlines(keepends=True)
        await process.wait()
        confirmed |= {int(line[1:]) for line in lines if line.endswith("\n")}
        start = max(confirmed) + 1000
    async with running(path) as log:
        async with router_shard_of(log) as shard:
            inputs: list[str] = []
            while entries := await shard.read(500, timedelta(0)):
                inputs += [e.record.message.queue_id for e in entries if isinstance(e.record, Accepted)]
            queued = [entry.delivery.message.queue_id async for batch in shard.replay() for entry in batch]
        count = (await log.backlog()).dispatched
        async with delivery_shard_of(log) as deliverer:
            sent = [e.record.delivery.message.queue_id for e in await read_dispatches(deliverer, count)]
    assert sorted(queued) == sorted(sent), "a commit is partial"
    assert not set(inputs) & set(queued), "a consumed input still exists"
    assert len(inputs) == len(set(inputs))
    missing = {queue_id(n) for n in confirmed} - set(inputs) - set(queued)
    assert not missing, f"{len(missing)} of {len(confirmed)} confirmed appends are lost"
    assert queued, "nothing was committed: the test proves nothing"
