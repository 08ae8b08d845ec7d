"""Moving a queue from log to log: everything arrives, once, whatever instant the mover dies at."""

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
from mail.message import Spooled
from mail.record import Active, Pending
from mail.service import ServiceError
from mail.settings import LogSettings
from mail.spool.memory import MemorySpool
from tests.support.builders.mixed_queue import KINDS, Planted, arrived, is_empty, plant
from tests.support.faults.killable_mover import KillableLog, Killed, KillSwitch, RecordingProgress, run_move
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.ports import wait_until


def carrier(source: Any, target: Any, **more: Any) -> ContentCopier:
    return ContentCopier(None if source is target else source, target, 256 << 10, **more)


@asynccontextmanager
async def logs(kind: str, folder: Path, name: str, shards: int, delivery_shards: int) -> AsyncIterator[Any]:
    settings = LogSettings(shards=shards, delivery_shards=delivery_shards)
    log: Any = MemoryLog(settings) if kind == "memory" else EmbeddedLog(folder / f"{name}.db", settings)
    await log.start()
    try:
        yield log
    finally:
        await log.close()


async def check_lines(target: Any, planted: Planted) -> None:
    """Attempts, due times, last replies and history survived."""
    lines = {line.delivery.id: line async for line in target.pending_deliveries()}
    assert lines.keys() == planted.lines.keys()
    for key, line in lines.items():
        before = planted.lines[key]
        assert (line.attempts, line.state, line.last, line.last_remote) == (
            before.attempts, before.state, before.last, before.last_remote,
        )  # fmt: skip


async def _deliver(mail_server: InMemoryMailServer, planted: Planted) -> None:
    async def is_through() -> bool:
        backlog = await mail_server.log.backlog()
        waiting = backlog.accepted + backlog.dispatched + backlog.attempted
        return not waiting and len(await mail_server.queue()) <= len(planted.held)

    await wait_until(is_through, what="the end of the queue", deadline_seconds=30)
    assert arrived(await mail_server.mailbox("alice")) == dict.fromkeys(planted.expected, 1)
    assert {line.delivery.message.queue_id for line in await mail_server.queue()} == {
        planted.messages[name] for name in planted.held
    }


class MailServerOn(InMemoryMailServer):
    """A mail server on a log and a spool that are there."""

    def __init__(self, log: Any, spool: Any) -> None:
        super().__init__({"router": {"retry": ["1s"]}}, log=log)
        self.spool = spool


@pytest.mark.parametrize("kind", ["memory", "embedded"])
@pytest.mark.parametrize(("shards", "target_shards"), [((1, 1), (3, 2)), ((3, 2), (1, 1)), ((2, 3), (5, 4))])
async def test_a_mixed_queue_moves_and_is_delivered_once(
    kind: str, shards: tuple[int, int], target_shards: tuple[int, int], tmp_path: Path
) -> None:
    here, there = MemorySpool(), MemorySpool()
    async with logs(kind, tmp_path, "old", *shards) as source, logs(kind, tmp_path, "new", *target_shards) as target:
        planted = await plant(source, here, 5)
        stories = {
            name: [event async for event in source.history(queue_id)] for name, queue_id in planted.messages.items()
        }
        tally = await run_move(source, target, carrier(here, there))
        assert await is_empty(source)
        assert (await source.backlog()).dispatched == 0
        here.contents.clear()  # nothing of the old side is needed any more
        open_kinds = len(KINDS) - 1  # all but "settled"
        assert (tally.messages, tally.unread, tally.deliveries, tally.known) == (5 * open_kinds, 10, 5 * 10, 0)
        await check_lines(target, planted)
        for name, queue_id in planted.messages.items():
            told = [event async for event in target.history(queue_id)]
            assert told == ([] if name.startswith("settled") else stories[name])
        await target.close()
        async with MailServerOn(target if kind == "memory" else again(target), there) as mail_server:
            await _deliver(mail_server, planted)


def again(log: EmbeddedLog) -> EmbeddedLog:
    """The same file in another life."""
    return EmbeddedLog(log._path, log._settings)


@pytest.fixture
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory is never on its way."""
    for name in ("eilpost.move.run._RETRY_WAIT", "tests.support.builders.mixed_queue.LOOK_AGAIN"):
        monkeypatch.setattr(name, timedelta(milliseconds=1))


@pytest.mark.usefixtures("_no_rest")
@pytest.mark.parametrize("after", [False, True])
async def test_killed_at_every_instant_and_run_again(after: bool) -> None:
    for at in range(1, 1000):
        here, there = MemorySpool(), MemorySpool()
        source, target = MemoryLog(LogSettings(shards=2)), MemoryLog(LogSettings(shards=3))
        planted = await plant(source, here, 2)
        life = KillSwitch(at, after=after)
        with suppress(Killed):
            await run_move(source, target, carrier(here, there), life)
        if not life.is_dead:
            break
        await run_move(source, target, carrier(here, there))
        await check_moved(source, target, planted, f"killed {'after' if after else 'before'} change {at}")
    assert at > 20, "the move has fewer changes than it had"


async def check_moved(source: Any, target: Any, planted: Planted, when: str) -> None:
    """Nothing lost, nothing twice: every record is on the target, and once."""
    assert await is_empty(source), when
    assert (await source.backlog()).dispatched == 0, when
    lines = {line.delivery.id async for line in target.pending_deliveries()}
    assert lines == planted.lines.keys(), when
    now = await target.backlog()
    in_hand = sum(isinstance(line.state, Active) for line in planted.lines.values())
    assert now.accepted == 4, when
    # The report or the dispatch of each line in hand. What was reported twice came with one of both reports.
    assert now.dispatched + now.attempted == in_hand, when
    assert now.attempted == 6, when
    for queue_id in planted.messages.values():
        events = [event async for event in target.history(queue_id)]
        assert len(events) == len(set(map(repr, events))), when


@pytest.mark.parametrize("after", [False, True])
async def test_killed_twice_in_a_row_and_delivered(after: bool) -> None:
    here, there = MemorySpool(), MemorySpool()
    source, target = MemoryLog(LogSettings(shards=2)), MemoryLog(LogSettings(shards=3))
    planted = await plant(source, here, 4)
    for at in (9, 5, 13, 2):
        with pytest.raises(Killed):
            await run_move(source, target, carrier(here, there), KillSwitch(at, after=after))
    await run_move(source, target, carrier(here, there))
    async with MailServerOn(target, there) as mail_server:
        await _deliver(mail_server, planted)


@pytest.mark.parametrize("at", [1, 4, 11])
async def test_a_commit_that_is_not_confirmed_is_tried_again(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eilpost.move.command._PAUSE_SECONDS", 0.01)
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings(shards=2)), MemoryLog(LogSettings(shards=3))
    planted = await plant(source, spool, 2)
    life = KillSwitch(at, after=True, error=LogUnavailable("the brokers did not answer in time"))
    quiet = RecordingProgress()
    tally = await move_until_done(
        KillableLog(source, life),
        KillableLog(target, life),
        carrier(spool, spool),
        history=True,
        progress=quiet,
        print_message=quiet.print_message,
    )
    assert quiet.messages == ["trying again: the brokers did not answer in time"]
    assert tally.known >= 0
    await check_moved(source, target, planted, f"failed at {at}")


async def test_a_log_that_never_answers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eilpost.move.command._PAUSE_SECONDS", 0.01)
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings())
    await plant(source, spool, 1)
    target.fail("no broker answers")
    quiet = RecordingProgress()
    with pytest.raises(ServiceError, match="no broker answers; nothing is lost, run the command again"):
        await move_until_done(
            source, target, carrier(spool, spool), history=True, progress=quiet, print_message=quiet.print_message
        )


@pytest.mark.parametrize("counted", [0, 3], ids=["too little", "too much"])
async def test_the_end_of_what_is_dispatched_is_told_by_its_shards(counted: int) -> None:
    """Not by a count, which on Kafka has its own marks in it, and not by silence: a shard may be slow to give."""

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
            return replace(await super().backlog(), dispatched=counted)

    spool = MemorySpool()
    source, target = InexactLog(LogSettings(delivery_shards=2)), MemoryLog(LogSettings())
    planted = await plant(source, spool, 2, kinds=["in-hand", "in-hand-spooled", "two"])
    await run_move(source, target, carrier(spool, spool), batch=500)
    assert {line.delivery.id async for line in target.pending_deliveries()} == planted.lines.keys()
    assert (await target.backlog()).dispatched == 6
    assert await is_empty(source)


async def test_a_line_in_hand_without_its_dispatch_stays_and_is_named() -> None:
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings())
    planted = await plant(source, spool, 2)
    dispatched = source._partitions["dispatched", 0].unconsumed
    del dispatched[next(iter(dispatched))]
    with pytest.raises(LogUnusable, match=r"damaged: \w+-1: in hand, and neither .* everything else was moved"):
        await run_move(source, target, carrier(spool, spool))
    left = [line async for line in source.pending_deliveries()]
    assert len(left) == 1
    assert len([line async for line in target.pending_deliveries()]) == len(planted.lines) - 1


async def test_a_frame_that_cannot_be_read_stops_the_move_and_stays() -> None:
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings())
    await plant(source, spool, 1)
    source._pending[0]["broken"] = b"EP\xff not a frame"
    with pytest.raises(LogUnusable, match="queue, shard 0, key broken"):
        await run_move(source, target, carrier(spool, spool))
    assert [line async for line in target.pending_deliveries()] == []


async def test_lost_content_stops_the_move_unless_it_may_go() -> None:
    here, there = MemorySpool(), MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings())
    planted = await plant(source, here, 1, kinds=["unread", "retry", "hold"])
    here.contents.clear()
    with pytest.raises(ServiceError, match=r"spool file .* is missing: .*--lost-too"):
        await run_move(source, target, carrier(here, there))
    brave = carrier(here, there, allow_lost=True)
    await run_move(source, target, brave)
    assert brave.lost_count == 2
    assert await is_empty(source)
    lines: Sequence[Pending] = [line async for line in target.pending_deliveries()]
    assert {line.delivery.id for line in lines} == planted.lines.keys()


async def test_content_too_large_to_ride_on_the_target_goes_to_its_spool() -> None:
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings())
    planted = await plant(source, spool, 2, size=5000, kinds=["unread", "in-hand"])
    await run_move(source, target, ContentCopier(None, spool, 1000))
    for queue_id in planted.messages.values():
        for accepted in await target.unrouted_messages(queue_id):
            assert isinstance(accepted.content, Spooled)
    async with MailServerOn(target, spool) as mail_server:
        await _deliver(mail_server, planted)


async def test_a_target_that_has_mail_of_its_own_keeps_it() -> None:
    spool = MemorySpool()
    source, target = MemoryLog(LogSettings()), MemoryLog(LogSettings(shards=2))
    own = await plant(target, spool, 1, kinds=["in-hand", "retry", "unread"])
    planted = await plant(source, spool, 1, kinds=["waits", "unread-spooled", "in-hand-spooled"])
    await run_move(source, target, carrier(spool, spool))
    own.expected |= planted.expected
    async with MailServerOn(target, spool) as mail_server:
        await _deliver(mail_server, own)
