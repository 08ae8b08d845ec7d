"""Journey 23: `eilpost move` moves a queue between an embedded log and Kafka, also when it is killed.

After the move the roles deliver each message once. A move killed with SIGKILL is repeated until it completes.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from eilpost.move.items import ContentCopier
from mail.log import Log
from mail.log.embedded import EmbeddedLog
from mail.log.kafka import KafkaLog
from mail.settings import LogSettings
from mail.spool.disk import DiskSpool
from mail.spool.memory import MemorySpool
from tests.support.builders.mixed_queue import Planted, arrived, is_empty, plant
from tests.support.faults.killable_mover import Killed, KillSwitch, run_move
from tests.support.servers import supervised
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess, directory_toml, toml
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.kafka_log import make_topics, running, settings_on
from tests.support.servers.ports import wait_until


def configuration(folder: Path, log: LogSettings, spool: str = "spool") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "eilpost.toml"
    kafka = {"prefix": log.prefix, "durability": "dev", "session_timeout": "6s", "append_timeout": "3s"}
    settings: dict[str, dict[str, Any]] = {
        "log": {"url": log.url, **(kafka if log.url.startswith("kafka") else {})},
        "spool": {"url": f"file:{spool}"},
    }
    path.write_text(toml(settings))
    (folder / "directory.toml").write_text(directory_toml())
    return path


def move(*arguments: object, status: int = 0) -> str:
    """The command's standard output, or its standard error if it must fail."""
    done = subprocess.run([str(EILPOST), "move", *map(str, arguments)], capture_output=True, text=True, timeout=90)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if status else done.stdout


def begun(*arguments: object) -> subprocess.Popen[bytes]:
    command = [str(EILPOST), "move", *map(str, arguments)]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=nowhere, stderr=nowhere, process_group=supervised.group())


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[EmbeddedLog]:
    log = EmbeddedLog(path, LogSettings())
    await log.start()
    try:
        yield log
    finally:
        await log.close()


async def deliver(log: Log, spool: Path | MemorySpool, planted: Planted) -> None:
    """Run the roles on the log until the queue is empty; each message arrives once."""
    mail_server = InMemoryMailServer(
        {"router": {"retry_delays": ["1s"]}}, log=log, spool=spool if isinstance(spool, Path) else None
    )
    if isinstance(spool, MemorySpool):
        mail_server.spool = spool
    async with mail_server:

        async def is_through() -> bool:
            return arrived(await mail_server.mailbox("alice")).total() >= len(planted.expected) and len(
                await mail_server.queue()
            ) <= len(planted.held)

        with suppress(AssertionError):  # the comparison below reports more
            await wait_until(is_through, what="the end of the queue", deadline_seconds=60)
        await asyncio.sleep(1.5)  # duplicates would be due by now
        assert arrived(await mail_server.mailbox("alice")) == dict.fromkeys(planted.expected, 1)
        assert {entry.delivery.message.queue_id for entry in await mail_server.queue()} == {
            planted.messages[name] for name in planted.held
        }


# The command on embedded logs


async def test_queue_moves_between_embedded_logs_of_two_configurations(tmp_path: Path) -> None:
    old = configuration(tmp_path / "old", LogSettings(url="embedded:log.db"))
    new = configuration(tmp_path / "new", LogSettings(url="embedded:new.db"))
    async with opened(tmp_path / "old/log.db") as log:
        planted = await plant(log, DiskSpool(tmp_path / "old/spool"), 3)
    found = json.loads(move("--from", old, "--to", new, "--dry-run", "--json"))
    assert (found["unread"], found["deliveries"], found["held"]) == (6, 30, 3)
    assert not (tmp_path / "new/new.db").exists()
    output = move("--from", old, "--to", new)
    assert output.startswith("moved 33 messages (6 not yet read by the router), 30 deliveries, ")
    again = json.loads(move("--from", old, "--to", new, "--json"))
    assert (again["messages"], again["deliveries"], again["known"]) == (0, 0, 0)
    shutil.rmtree(tmp_path / "old")
    await deliver(EmbeddedLog(tmp_path / "new/new.db", LogSettings()), tmp_path / "new/spool", planted)


async def test_move_killed_repeatedly_completes(tmp_path: Path) -> None:
    config = configuration(tmp_path, LogSettings(url="embedded:old.db"))
    async with opened(tmp_path / "old.db") as log:
        planted = await plant(log, DiskSpool(tmp_path / "spool"), 150)
    killed = 0
    # delays from the creation of the target, so that kills hit later and later
    for milliseconds in (0, 80, 200, 400, 700):
        mover = begun("--from", "embedded:old.db", "--to", "embedded:new.db", "--config", config)
        while not (tmp_path / "new.db").exists() and mover.poll() is None:
            await asyncio.sleep(0.005)
        try:
            mover.wait(milliseconds / 1000)
        except subprocess.TimeoutExpired:
            mover.send_signal(signal.SIGKILL)
            killed += 1
        if mover.wait() == 0:
            break
    assert killed
    move("--from", "embedded:old.db", "--to", "embedded:new.db", "--config", config)
    async with opened(tmp_path / "old.db") as log:
        assert await is_empty(log)
        assert (await log.backlog()).dispatched == 0
    await deliver(EmbeddedLog(tmp_path / "new.db", LogSettings()), tmp_path / "spool", planted)


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("embedded:old.db", "embedded:old.db", "are the same log"),
        ("embedded:old.db", "embedded:./old.db", "are the same log"),
        ("embedded:nothing.db", "embedded:new.db", "there is no log at"),
        ("embedded:old.db", "memory:", "a log in memory cannot be moved"),
        ("embedded:old.db", "kafka:nowhere", "--to kafka:nowhere: brokers are expected"),
        ("embedded:old.db", "kafka://127.0.0.1:1", "127.0.0.1:1"),
        ("nothing.toml", "embedded:new.db", "an existing configuration file or the URL of a log is expected"),
        ("embedded:spoilt.db", "embedded:new.db", "cannot be opened as a log: file is not a database"),
        ("embedded:spool", "embedded:new.db", "there is no log at"),
    ],
)
async def test_impossible_move_is_a_one_line_error(tmp_path: Path, source: str, target: str, says: str) -> None:
    config = configuration(tmp_path, LogSettings(url="embedded:old.db"))
    async with opened(tmp_path / "old.db"):
        pass
    (tmp_path / "spoilt.db").write_bytes(b"SQLite format 3\0" + b"not really" * 1000)
    (tmp_path / "spool").mkdir()
    output = move("--from", source, "--to", target, "--config", config, status=2)
    assert says in output
    assert output.startswith("eilpost: ")
    assert output.count("\n") == 1


async def test_running_source_is_not_changed(tmp_path: Path) -> None:
    with EilpostProcess(tmp_path / "box") as box:
        output = move("--from", box.config, "--to", f"embedded:{tmp_path}/new.db", status=2)
        assert "another eilpost process" in output
        assert output.count("\n") == 1


# On a real Kafka


@pytest.mark.kafka
async def test_queue_moves_to_kafka_and_back(kafka_bootstrap: str, tmp_path: Path) -> None:
    settings = settings_on(kafka_bootstrap, shards=3, delivery_shards=2)
    here, there = MemorySpool(), MemorySpool()
    async with opened(tmp_path / "old.db") as source:
        planted = await plant(source, here, 6)
        async with running(settings) as target:
            await run_move(source, target, ContentCopier(here, there, 256 << 10), batch=50)
            events = [event async for event in target.history(planted.messages["retry-1"])]
            assert events == [event async for event in source.history(planted.messages["retry-1"])]
            assert len(events) == 3
            entries = {entry.delivery.id: entry async for entry in target.queue_entries()}
            assert entries.keys() == planted.entries.keys()
            assert all(entries[key].attempts == entry.attempts for key, entry in planted.entries.items())
        assert await is_empty(source)
    async with opened(tmp_path / "new.db") as target_file, running(settings) as cluster:
        await run_move(cluster, target_file, ContentCopier(there, here, 256 << 10), batch=50)
        assert await is_empty(cluster)
    await deliver(EmbeddedLog(tmp_path / "new.db", LogSettings()), here, planted)


@pytest.mark.kafka
@pytest.mark.parametrize("after", [False, True])
async def test_move_to_kafka_killed_between_commits_completes(
    kafka_bootstrap: str, tmp_path: Path, after: bool
) -> None:
    settings = settings_on(kafka_bootstrap, shards=3, delivery_shards=2)
    spool = MemorySpool()
    async with opened(tmp_path / "old.db") as source:
        planted = await plant(source, spool, 4)
        for at in (2, 7, 4, 9):
            async with running(settings) as target:
                with pytest.raises(Killed):
                    await run_move(source, target, ContentCopier(None, spool, 256 << 10), KillSwitch(at, after=after))
        async with running(settings) as target:
            await run_move(source, target, ContentCopier(None, spool, 256 << 10))
        assert await is_empty(source)
    await deliver(KafkaLog(settings), spool, planted)


@pytest.mark.kafka
async def test_move_command_to_kafka_killed_repeatedly_completes(kafka_bootstrap: str, tmp_path: Path) -> None:
    settings = settings_on(kafka_bootstrap, shards=3, delivery_shards=2)
    await make_topics(settings)
    new = configuration(tmp_path / "new", settings, spool="../spool")
    old = configuration(tmp_path / "old", LogSettings(url="embedded:log.db"), spool="../spool")
    async with opened(tmp_path / "old/log.db") as log:
        planted = await plant(log, DiskSpool(tmp_path / "spool"), 100)
    mover = begun("--from", old, "--to", new)
    async with running(settings) as target:

        async def has_begun() -> bool:
            return mover.poll() is not None or (await target.backlog()).accepted > 0

        await wait_until(has_begun, what="the first commit", deadline_seconds=40)
    assert mover.poll() is None
    mover.send_signal(signal.SIGKILL)
    mover.wait()
    done = await asyncio.to_thread(
        subprocess.run, [str(EILPOST), "move", "--from", old, "--to", new], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert "s for them to end" in done.stderr
    assert done.stdout.startswith("moved ")
    async with opened(tmp_path / "old/log.db") as log:
        assert await is_empty(log)
    await deliver(KafkaLog(settings), tmp_path / "spool", planted)


@pytest.mark.kafka
async def test_queue_moves_to_kafka_by_two_urls(kafka_bootstrap: str, tmp_path: Path) -> None:
    settings = settings_on(kafka_bootstrap, shards=3, delivery_shards=2)
    await make_topics(settings)
    config = configuration(tmp_path, settings)  # the prefix and the spool are not in a URL
    async with opened(tmp_path / "old.db") as log:
        planted = await plant(log, DiskSpool(tmp_path / "spool"), 3)
    urls = ("--from", "embedded:old.db", "--to", settings.url, "--config", config)
    output = await asyncio.to_thread(move, *urls)
    assert output.startswith("moved 33 messages (6 not yet read by the router), 30 deliveries, ")
    async with opened(tmp_path / "old.db") as log:
        assert await is_empty(log)
    await deliver(KafkaLog(settings), tmp_path / "spool", planted)


@pytest.mark.kafka
async def test_cluster_in_use_and_identical_logs_are_refused(kafka_bootstrap: str, tmp_path: Path) -> None:
    settings = settings_on(kafka_bootstrap, shards=2, delivery_shards=2)
    await make_topics(settings)
    new = configuration(tmp_path / "new", settings)
    old = configuration(tmp_path / "old", LogSettings(url="embedded:log.db"))
    assert "are the same log" in move("--from", new, "--to", new, status=2)
    async with opened(tmp_path / "old/log.db") as log:
        planted = await plant(log, DiskSpool(tmp_path / "old/spool"), 1)
    async with InMemoryMailServer(log=KafkaLog(settings)) as mail_server:
        output = await asyncio.to_thread(lambda: move("--from", old, "--to", new, status=2))
        assert "is in use (group members: " in output
        assert not await mail_server.queue()
    async with opened(tmp_path / "old/log.db") as log:
        assert Counter([entry.delivery.id async for entry in log.queue_entries()]) == Counter(planted.entries.keys())
