"""What only the embedded log promises: its file, its lock, its disk, its window for other processes."""

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
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from mail.log import Backlog, Down, Full, LogUnavailable, LogUnusable, Usable
from mail.log.embedded import EmbeddedHistory, EmbeddedLog
from mail.log.embedded.store import EntryRows, Store
from mail.log.topics import ACCEPTED, Topic
from mail.record import Accepted
from mail.settings import LogSettings
from tests.contract.log_contract import delivering, dispatches, routing, take_all
from tests.support.log_samples import accepted, attempted, event, pending, queue_id

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def running(path: Path, settings: LogSettings | None = None) -> AsyncIterator[EmbeddedLog]:
    log = EmbeddedLog(path, settings or LogSettings())
    await log.start()
    try:
        yield log
    finally:
        await log.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


# --- opening


async def test_a_second_process_is_told_who_is_there(path: Path) -> None:
    async with running(path):
        with pytest.raises(LogUnusable, match=rf"another eilpost process \({os.getpid()}\).*{path.parent}"):
            await EmbeddedLog(path, LogSettings()).start()
    async with running(path):  # and it is free again
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
    with pytest.raises(LogUnusable, match=rf"log\.{key} = 1 and the settings say 4"):
        await EmbeddedLog(path, LogSettings.model_validate({key: 4})).start()
    async with running(path):
        pass


async def test_a_newer_schema_is_left_alone(path: Path) -> None:
    async with running(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(LogUnusable, match="schema 99"):
        await EmbeddedLog(path, LogSettings()).start()


async def test_somebody_elses_database_is_left_alone(path: Path) -> None:
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


async def test_a_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnusable, match="file"):
        await EmbeddedLog(tmp_path / "file" / "log.db", LogSettings()).start()


# --- the disk


async def test_little_disk_turns_new_mail_away(path: Path) -> None:
    async with running(path, LogSettings(min_free_disk=1 << 60)) as log:
        condition = log.condition()
        assert isinstance(condition, Full)
        assert str(path.parent) in condition.reason
        await log.append(accepted())  # what is on its way is taken


async def test_a_full_disk_loses_nothing_and_mends_itself(path: Path) -> None:
    async with running(path) as log:
        await log.append(accepted(1))
        # SQLite's own limit gives its genuine "database or disk is full".
        await log.writer.ask(lambda store: store._connection.execute("PRAGMA max_page_count = 20").fetchone())
        with pytest.raises(LogUnavailable, match="full"):
            await log.append(accepted(2, bytes(1_000_000)))
        async with asyncio.timeout(10):
            while not isinstance(log.condition(), Usable):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await log.append(accepted(3))
        async with routing(log) as shard:
            taken = await take_all(shard, 2)
        assert [entry.record for entry in taken] == [accepted(1), accepted(3)]


async def test_a_disk_that_hangs_is_told_in_time_and_late_appends_are_not_made(path: Path) -> None:
    let_go = threading.Event()
    async with running(path, LogSettings(append_timeout=timedelta(milliseconds=300))) as log:
        blocked = log.writer.ask(lambda _: let_go.wait(20))
        await asyncio.sleep(0.05)
        with pytest.raises(LogUnavailable):
            await log.append(accepted(1))
        assert isinstance(log.condition(), Down)
        with pytest.raises(LogUnavailable):
            await blocked
        let_go.set()
        async with asyncio.timeout(10):
            while not isinstance(log.condition(), Usable):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await log.append(accepted(2))
        async with routing(log) as shard:
            assert [entry.record for entry in await take_all(shard, 1)] == [accepted(2)]


async def test_what_waits_for_the_disk_is_bounded(path: Path) -> None:
    let_go = threading.Event()
    content = bytes(1 << 20)
    async with running(path) as log:
        blocked = log.writer.ask(lambda _: let_go.wait(20))
        tasks = [asyncio.ensure_future(log.append(accepted(n, content))) for n in range(80)]
        await asyncio.sleep(0.05)
        assert log.writer._waiting_bytes < 34 << 20
        let_go.set()
        await blocked
        await asyncio.gather(*tasks)
        async with routing(log) as shard:
            assert len(await take_all(shard, 80)) == 80


async def test_the_files_shrink_again_when_the_mail_is_gone(path: Path) -> None:
    content = bytes(100_000)
    async with running(path) as log:
        for _ in range(8):
            await asyncio.gather(*(log.append(accepted(n, content)) for n in range(100)))
        async with routing(log) as shard:
            await shard.commit([], await take_all(shard, 800, limit=1000))
        async with asyncio.timeout(20):
            while sum(f.stat().st_size for f in path.parent.iterdir()) > 24 << 20:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_memory_and_database_hand_over_each_entry_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mail.log.embedded.TAIL_BYTES", 20_000)  # some ten entries: the two take turns all the time
    total = 2000
    async with running(path) as log, routing(log) as shard:
        numbers = iter(range(total))
        order: list[str] = []

        async def append() -> None:
            for n in numbers:
                await log.append(accepted(n, bytes(1500)))
                order.append(queue_id(n))

        appends = asyncio.gather(*(append() for _ in range(30)))
        seen: list[int] = []
        ids: list[str] = []
        while len(ids) < total:
            taken = await shard.take(len(ids) % 40 + 1, timedelta(seconds=5))
            assert taken
            seen += [entry.offset for entry in taken]
            ids += [entry.record.message.queue_id for entry in taken if isinstance(entry.record, Accepted)]
            if len(ids) % 3:
                await shard.commit([], taken)
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(0.002)
                await shard.commit([], taken)
        await appends
        assert seen == sorted(set(seen))
        assert sorted(ids) == [queue_id(n) for n in range(total)]
        assert not await shard.take(1, timedelta(0))


async def test_a_disk_that_stays_broken_is_down_until_it_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        async with asyncio.timeout(10):
            while not isinstance(log.condition(), Usable):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await log.append(accepted(3))
        async with routing(log) as shard:
            assert [entry.record for entry in await take_all(shard, 2)] == [accepted(1), accepted(3)]


async def test_a_read_that_fails_loses_nothing_that_was_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(path) as log:
        await log.append(accepted(1))
        await log.append(attempted(2))
        entries = Store.entries
        failures = iter([True])

        def fails_once(store: Store, topic: Topic, shard: int, after: int, limit: int) -> EntryRows:
            if topic is ACCEPTED and next(failures, False):
                raise sqlite3.OperationalError("disk I/O error")
            return entries(store, topic, shard, after, limit)

        monkeypatch.setattr(Store, "entries", fails_once)
        async with routing(log) as shard:
            taken = [*await take_all(shard, 1)]
            assert [entry.record for entry in taken] == [attempted(2)]
            taken += await take_all(shard, 1)
            assert [entry.record for entry in taken] == [attempted(2), accepted(1)]
            await shard.commit([], taken)
            assert await log.backlog() == Backlog(0, 0, 0)


# --- the window


async def _fill(log: EmbeddedLog) -> None:
    await log.append(accepted(5))
    async with routing(log) as shard:
        await shard.commit([pending(n) for n in range(600)] + [event(1), event(1)], [])


async def _look(history: EmbeddedHistory) -> None:
    assert [e async for e in history.history(queue_id(1))] == [event(1), event(1)]
    assert [e async for e in history.history(queue_id(2))] == []
    assert len([line async for line in history.open_lines()]) == 600
    assert list(await history.waiting_inputs(queue_id(5))) == [accepted(5)]
    assert (await history.backlog()).accepted == 1


@pytest.mark.parametrize("depth", [0, 12])
async def test_others_look_in_while_it_runs_and_after(tmp_path: Path, depth: int) -> None:
    path = tmp_path.joinpath(*["a-long-directory-name"] * depth, "log.db")  # beyond what a socket's name may have
    history = EmbeddedHistory(path)
    async with running(path, LogSettings(shards=2)) as log:
        await _fill(log)
        await _look(history)
    await _look(history)
    async with running(path, LogSettings(shards=2)):  # looking let go of the lock
        pass


async def test_another_process_looks_in(path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from mail.log.embedded import EmbeddedHistory\n"
        "async def main():\n"
        "    print(len([line async for line in EmbeddedHistory(Path(sys.argv[1])).open_lines()]))\n"
        "asyncio.run(main())"
    )
    async with running(path, LogSettings(shards=2)) as log:
        await _fill(log)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(path), stdout=subprocess.PIPE, cwd=ROOT
        )
        out, _ = await process.communicate()
    assert out.strip() == b"600"


async def test_no_log_is_said_and_none_is_made(path: Path) -> None:
    with pytest.raises(LogUnusable, match="there is no log at"):
        await EmbeddedHistory(path).backlog()
    assert list(path.parent.iterdir()) == []


async def test_looking_into_a_corrupt_file_is_one_line(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 1000)
    with pytest.raises(LogUnusable, match=re.escape(str(path))):
        await EmbeddedHistory(path).backlog()


async def test_strange_and_silent_clients_do_no_harm(path: Path) -> None:
    async with running(path, LogSettings(shards=2)) as log:
        await _fill(log)
        silent = []
        for words in (b"\n", b"x" * 100_000, b'{"about": 5}\n', b"[]\n", b"\xff\n", b'{"about": "lines"}\n'):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, str(path) + ".sock")
            with suppress(OSError):
                await loop.sock_sendall(client, words)
            silent.append(client)  # and never reads
        await asyncio.sleep(0.05)
        await _look(EmbeddedHistory(path))
        await log.append(accepted(6))
        for client in silent:
            client.close()


# --- kill -9

_VICTIM = """
import asyncio, sys
from pathlib import Path
from mail.log.embedded import EmbeddedLog
from mail.settings import LogSettings
from mail.message import delivery_id
from mail.record import Delivery, Dispatched, InHand, Pending
from tests.support.log_samples import NOON, RELAY, accepted
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
            taken = await shard.take(50, timedelta(seconds=1))
            records = []
            for entry in taken:
                message = entry.record.message
                delivery = Delivery(delivery_id(message.queue_id, 1), message, RELAY)
                records += [Pending(delivery, InHand(NOON), None), Dispatched(delivery, 1, entry.record.content)]
            await shard.commit(records, taken)
    await asyncio.gather(log.route(route, asyncio.Event()), *(append() for _ in range(10)))

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


async def test_kill_9_at_any_instant_keeps_every_append_and_no_half_commit(path: Path) -> None:
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
        words = (first + await process.stdout.read()).decode().splitlines(keepends=True)
        await process.wait()
        confirmed |= {int(word[1:]) for word in words if word.endswith("\n")}
        start = max(confirmed) + 1000
    async with running(path) as log:
        async with routing(log) as shard:
            inputs: list[str] = []
            while taken := await shard.take(500, timedelta(0)):
                inputs += [e.record.message.queue_id for e in taken if isinstance(e.record, Accepted)]
            lines = [line.delivery.message.queue_id async for batch in shard.replay() for line in batch]
        count = (await log.backlog()).dispatched
        async with delivering(log) as deliverer:
            sent = [e.record.delivery.message.queue_id for e in await dispatches(deliverer, count)]
    assert sorted(lines) == sorted(sent), "a commit was made by half"
    assert not set(inputs) & set(lines), "an input was consumed and kept"
    assert len(inputs) == len(set(inputs))
    missing = {queue_id(n) for n in confirmed} - set(inputs) - set(lines)
    assert not missing, f"{len(missing)} of {len(confirmed)} confirmed appends are gone"
    assert lines, "nothing was ever committed: the test proves nothing"
