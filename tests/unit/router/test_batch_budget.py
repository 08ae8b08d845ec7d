"""How much goes into one commit: a flood to a long list makes many commits of bounded size, and stops nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from mail.directory.static import StaticDirectory
from mail.log.memory import MemoryLog
from mail.message import Inline
from mail.record import Record
from mail.resolver.static import StaticResolver
from mail.settings import LogSettings, NodeSettings, RouterSettings
from mail.spool.memory import MemorySpool
from router import shard
from router.batch_budget import CONTENT_BYTES_MAX, OUTPUT_RECORDS_MAX, READ_MAX, BatchBudget
from router.server import Router
from tests.support.builders.routing import accepted, snapshot

MEMBERS = [f"u{number}@example.test" for number in range(600)]
SNAPSHOT = snapshot(MEMBERS, {"all@example.test": MEMBERS})


def inputs_in_budget(portion: BatchBudget, to: str, size: int = 10, steps: list[int] | None = None) -> int:
    """How many such messages make a portion."""
    portion.reset()
    count = 0
    while step := portion.read_limit:
        if steps is not None:
            steps.append(step)
        for _ in range(step):
            portion.add(accepted(to, content=Inline(bytes(size))), SNAPSHOT, 20)
            count += 1
    return count


def test_a_portion_is_full_by_inputs_by_what_follows_or_by_bytes() -> None:
    assert inputs_in_budget(BatchBudget(200), "u1@example.test") == 200
    assert inputs_in_budget(BatchBudget(200), "u1@example.test", CONTENT_BYTES_MAX // 20) == 20 + 20 % READ_MAX
    portion = BatchBudget(200)
    assert inputs_in_budget(portion, "all@example.test") == 2
    steps: list[int] = []
    for _ in range(100):
        inputs_in_budget(portion, "u1@example.test", steps=steps)
    assert max(steps[:10]) == 1
    assert max(steps) == READ_MAX  # what was heavy is forgotten in time


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of what was written together."""
    sizes: list[int] = []
    write = MemoryLog.write

    def watched(self: MemoryLog, records: Sequence[Record], consumed: Sequence[Any] = ()) -> None:
        sizes.append(len(records))
        write(self, records, consumed)

    monkeypatch.setattr(MemoryLog, "write", watched)
    return sizes


async def test_a_flood_to_a_list_is_many_commits_and_others_have_their_turn(commits: list[int]) -> None:
    log = MemoryLog(LogSettings())
    floods = 40
    for _ in range(floods):
        await log.append(accepted("all@example.test", received=datetime.now(UTC)))
    router = Router(
        settings=RouterSettings(),
        node=NodeSettings(),
        relay=None,
        log=log,
        spool=MemorySpool(),
        directory=StaticDirectory(SNAPSHOT),
        resolver=StaticResolver(),
    )
    stop, turns = asyncio.Event(), 0
    running = asyncio.create_task(router.run(lambda: None, stop))
    commits.clear()
    async with asyncio.timeout(60):
        while (await log.backlog()).accepted:
            await asyncio.sleep(0)
            turns += 1
        stop.set()
        await running
    records = floods * len(MEMBERS) * 2  # what waits for the window has no dispatch yet
    assert sum(commits) >= records
    assert max(commits) <= OUTPUT_RECORDS_MAX + 3 * len(MEMBERS) + 10
    assert turns >= records // shard.YIELD_INTERVAL
