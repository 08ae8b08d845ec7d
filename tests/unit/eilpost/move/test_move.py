"""Move of a queue: every message arrives exactly once, even if the mover is killed at any step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from eilpost.move.command import move_until_done
from eilpost.move.items import ContentCopier
from mail.log import Backlog, LogUnavailable, LogUnusable
from mail.log.embedded import EmbeddedLog
from mail.log.memory import MemoryLog
from mail.log.topics import DISPATCHED, QUEUE
from mail.message import Spooled
from mail.record import Active, QueueEntry
from mail.service import ServiceError
from mail.settings import LogSettings
from mail.spool.memory import MemorySpool
from tests.support.builders.mixed_queue import KINDS, Planted, arrived, is_empty, plant
from tests.support.faults.killable_mover import KillableLog, Killed, KillSwitch, RecordingProgress, run_move
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.ports import wait_until

pytestmark = pytest.mark.slow


def make_copier(source: Any, target: Any, **more: Any) -> ContentCopier:
    return ContentCopier(None if source is target else source, target, 256 << 10, **more)


def log_settings(shards: int, delivery_shards: int) -> LogSettings:
    return LogSettings(shards=shards, delivery_shards=delivery_shards)


@asynccontextmanager
async def logs(kind: str, folder: Path, name: str, shards: int, delivery_shards: int) -> AsyncIterator[Any]:
    settings = log_settings(shards, delivery_shards)
    log: Any = MemoryLog(settings) if kind == "memory" else EmbeddedLog(folder / f"{name}.db", settings)
    await log.start()
    try:
        yield log
    finally:
        await log.close()


async def check_lines(target: Any, planted: Planted) -> None:
    """Attempts, due times, last replies and history survived."""
    entries = {entry.delivery.id: entry async for entry in target.queue_entries()}
    assert entries.keys() == planted.entries.keys()
    for key, entry in entries.items():
        before = planted.entries[key]
        assert (entry.attempts, entry.state, entry.last, entry.last_remote) == (
            before.attempts, before.state, before.last, before.last_remote,
        )  # fmt: skip


async def _deliver(mail_server: InMemoryMailServer, planted: Planted) -> None:
    async def is_through() -> bool:
        backlog = await mail_server.log.backlog()
        waiting = backlog.accepted + backlog.dispatched + backlog.attempted
        return not waiting and len(await mail_server.queue()) <= len(planted.held)

    await wait_until(is_through, what="the end of the queue", deadline_seconds=30)
    assert arrived(await mail_server.mailbox("alice")) == dict.fromkeys(planted.expected, 1)
    assert {entry.delivery.message.queue_id for entry in await mail_server.queue()} == {
        planted.messages[name] for name in planted.held
    }


class MailServerOn(InMemoryMailServer):
    """A mail server on an existing log and spool."""

    def __init__(self, log: Any, spool: Any) -> None:
        super().__init__({"router": {"retry_delays": ["1s"]}}, log=log)
        self.spool = spool


@pytest.mark.parametrize("kind", ["memory", "embedded"])
@pytest.mark.parametrize(("shards", "target_shards"), [((1, 1), (3, 2)), ((3, 2), (1, 1)), ((2, 3), (5, 4))])
async def test_mixed_queue_is_moved_and_delivered_once(
    kind: str, shards: tuple[int, int], target_shards: tuple[int, int], tmp_path: Path
) -> None:
    source_spool, target_spool = MemorySpool(), MemorySpool()
    async with logs(kind, tmp_path, "old", *shards) as source, logs(kind, tmp_path, "new", *target_shards) as target:
        planted = await plant(source, source_spool, 5)
        histories = {
            name: [event async for event in source.history(queue_id)] for name, queue_id in planted.messages.items()
        }
        result = await run_move(source, target, make_copier(source_spool, target_spool))
        assert await is_empty(source)
        assert (await source.backlog()).dispatched == 0
        source_spool.contents.clear()  # the source spool is no longer needed
        open_kinds = len(KINDS) - 1  # all but "settled"
        assert (result.messages, result.unread, result.deliveries, result.known) == (5 * open_kinds, 10, 5 * 10, 0)
        await check_lines(target, planted)
        for name, queue_id in planted.messages.items():
            totals = [event async for event in target.history(queue_id)]
            assert totals == ([] if name.startswith("settled") else histories[name])
        await target.close()
        if kind == "embedded":  # another instance on the same file
            target = EmbeddedLog(tmp_path / "new.db", log_settings(*target_shards))
        async with MailServerOn(target, target_spool) as mail_server:
            await _deliver(mail_server, planted)


@pytest.fixture
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records in a memory log are never in transit."""
    for name in ("eilpost.move.run._RETRY_WAIT", "tests.support.builders.mixed_queue.LOOK_AGAIN"):
        monkeypatch.setattr(name, timedelta(milliseconds=1))


@pytest.mark.usefixtures("_short_waits")
@pytest.mark.parametrize("after", [False, True])
async def test_move_killed_at_any_step_is_completed_by_the_next_run(after: bool) -> None:
    for at in range(1, 1000):
        source_spool, target_spool = MemorySpool(), MemorySpool()
        source, target = MemoryLog(LogSettings(shards=2)), MemoryLog(LogSettings(shards=3))
        planted = await plant(source, source_spool, 2)
        switch = KillSwitch(at, after=after)
        with suppress(Killed):
            await run_move(source, target, make_copier(source_spool, target_spool), switch)
        if not switch.is_dead:
            break
        await run_move(source, target, make_copier(source_spool, target_spool))
        await check_moved(source, target, planted, f"killed {'after' if after else 'before'} change {at}")
    assert at > 20, "the move has fewer changes than it had"


async def check_moved(source: Any, target: Any, planted: Planted, when: str) -> None:
    """Every record is on the target exactly once."""
    assert await is_empty(source), when
    assert (await source.backlog()).dispatched == 0, when
    entries = {entry.delivery.id async for entry in target.queue_entries()}
    assert entries == planted.entries.keys(), when
    now = await target.backlog()
    active = sum(isinstance(entry.state, Active) for entry in planted.entries.values())
    assert now.accepted == 4, when
    # One report or dispatch per active delivery; of two reports one was moved.
    assert now.dispatched + now.attempted == active, when
    assert now.attempted == 6, when
    for queue_id in planted.messages.values():
        events = [event async for event in target.history(queue_id)]
        assert len(events) == len(set(map(repr, events))), when


@pytest.mark.parametrize("after", [False, True])
async def test_move_killed_several_times_is_completed(after: bool) -> None:
    source_spool, target_spool = MemorySpool(), MemorySpool()
    source, target = MemoryLog(LogSettings(shards=2)), MemoryLog(LogSettings(shards=3))
    planted = await plant(source, source_spool, 4)
    for at in (9, 5, 13, 2):
        with pytest.raises(Killed):
            await run_move(source, target, make_copier(source_spool, target_spool), KillSwitch(at, after=after))
    await run_move(source, target, make_copier(source_spool, target_spool))
    async with MailServerOn(target, target_spool) as mail_server:
        await _deliver(mail_server, planted)


@pytest.mark.parametrize("at", [1, 4, 11])
async def test_unconfirmed_commit_is_retried(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eilpost.move.command._PAUSE_SECONDS", 0.01)
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings(shards=2)), MemoryLog(LogSettings(shards=3))
    planted = await plant(source, spool, 2)
    switch = KillSwitch(at, after=True, error=LogUnavailable("the brokers did not answer in time"))
    progress = RecordingProgress()
    result = await move_until_done(
        KillableLog(source, switch),
        KillableLog(target, switch),
        make_copier(spool, spool),
        history=True,
        progress=progress,
        print_message=progress.print_message,
    )
    assert progress.messages == ["retrying: the brokers did not answer in time"]
    assert result.known >= 0
    await check_moved(source, target, planted, f"failed at {at}")


async def test_unavailable_log_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eilpost.move.command._PAUSE_SECONDS", 0.01)
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings())
    await plant(source, spool, 1)
    target.fail("no broker answers")
    progress = RecordingProgress()
    with pytest.raises(ServiceError, match="no broker answers; no mail is lost, run the command again"):
        await move_until_done(
            source,
            target,
            make_copier(spool, spool),
            history=True,
            progress=progress,
            print_message=progress.print_message,
        )


@pytest.mark.parametrize("count", [0, 3], ids=["too little", "too much"])
async def test_end_of_dispatches_is_reported_by_the_shards(count: int) -> None:
    """Not by a count (on Kafka it includes transaction markers) nor by a time-out (a shard may be slow)."""

    class SlowShard:
        def __init__(self, shard: Any) -> None:
            self._shard = shard

        def __getattr__(self, name: str) -> Any:
            return getattr(self._shard, name)

        async def read(self, limit: int, wait: timedelta | None = None) -> Any:
            await asyncio.sleep(0.2)
            return await self._shard.read(limit, wait)

    class InexactLog(MemoryLog):
        async def own_delivery_shards(self, process: Any, stop: asyncio.Event, on_ready: Any = None) -> None:
            await super().own_delivery_shards(lambda shard: process(SlowShard(shard)), stop, on_ready)

        async def backlog(self) -> Backlog:
            return replace(await super().backlog(), dispatched=count)

    spool = MemorySpool()
    source, target = InexactLog(LogSettings(delivery_shards=2)), MemoryLog(LogSettings())
    planted = await plant(source, spool, 2, kinds=["active", "active-spooled", "two"])
    await run_move(source, target, make_copier(spool, spool), batch=500)
    assert {entry.delivery.id async for entry in target.queue_entries()} == planted.entries.keys()
    assert (await target.backlog()).dispatched == 6
    assert await is_empty(source)


async def test_active_delivery_without_dispatch_is_named_and_not_moved() -> None:
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings())
    planted = await plant(source, spool, 2)
    dispatched = source.partition(DISPATCHED, 0).unconsumed
    del dispatched[next(iter(dispatched))]
    with pytest.raises(
        LogUnusable, match=r"damaged: \w+-1: active without a dispatch or report; .* everything else was moved"
    ):
        await run_move(source, target, make_copier(spool, spool))
    left = [entry async for entry in source.queue_entries()]
    assert len(left) == 1
    assert len([entry async for entry in target.queue_entries()]) == len(planted.entries) - 1


async def test_unreadable_frame_stops_the_move() -> None:
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings())
    await plant(source, spool, 1)
    source._compacted[QUEUE.name, 0]["broken"] = b"EP\xff not a frame"
    with pytest.raises(LogUnusable, match="queue, shard 0, key broken"):
        await run_move(source, target, make_copier(spool, spool))
    assert [entry async for entry in target.queue_entries()] == []


async def test_lost_content_stops_the_move_unless_allowed() -> None:
    source_spool, target_spool = MemorySpool(), MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings())
    planted = await plant(source, source_spool, 1, kinds=["unread", "retry", "hold"])
    source_spool.contents.clear()
    with pytest.raises(ServiceError, match=r"is missing: .*--lost-too"):
        await run_move(source, target, make_copier(source_spool, target_spool))
    copier = make_copier(source_spool, target_spool, allow_lost=True)
    await run_move(source, target, copier)
    assert copier.lost_count == 2
    assert await is_empty(source)
    entries: Sequence[QueueEntry] = [entry async for entry in target.queue_entries()]
    assert {entry.delivery.id for entry in entries} == planted.entries.keys()


async def test_content_too_large_for_the_target_is_spooled() -> None:
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings())
    planted = await plant(source, spool, 2, size=5000, kinds=["unread", "active"])
    await run_move(source, target, ContentCopier(None, spool, 1000))
    for queue_id in planted.messages.values():
        for accepted in await target.unrouted_messages(queue_id):
            assert isinstance(accepted.content, Spooled)
    async with MailServerOn(target, spool) as mail_server:
        await _deliver(mail_server, planted)


async def test_mail_on_the_target_is_kept() -> None:
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings(shards=2))
    own = await plant(target, spool, 1, kinds=["active", "retry", "unread"])
    planted = await plant(source, spool, 1, kinds=["waits", "unread-spooled", "active-spooled"])
    await run_move(source, target, make_copier(spool, spool))
    own.expected |= planted.expected
    async with MailServerOn(target, spool) as mail_server:
        await _deliver(mail_server, own)
