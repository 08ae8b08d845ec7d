"""Tests of batch sizing: many messages to a large list are committed in bounded batches and do not block other mail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from mail.log.memory import MemoryLog
from mail.message import Inline
from mail.record import Record
from mail.settings import LogSettings, NodeSettings
from mail.settings_roles import RouterSettings
from mail.spool.memory import MemorySpool
from router import shard
from router.batch_budget import CONTENT_BYTES_MAX, OUTPUT_RECORDS_MAX, READ_MAX, BatchBudget
from router.server import Router
from tests.support.builders.routing import accepted, snapshot
from tests.support.servers.static_directory import StaticDirectory
from tests.support.servers.static_resolver import StaticResolver

MEMBERS = [f"u{number}@example.test" for number in range(600)]
SNAPSHOT = snapshot(MEMBERS, {"all@example.test": MEMBERS})


def inputs_in_budget(budget: BatchBudget, to: str, size: int = 10, steps: list[int] | None = None) -> int:
    """How many such messages fit into one batch."""
    budget.reset()
    count = 0
    while step := budget.read_limit:
        if steps is not None:
            steps.append(step)
        for _ in range(step):
            budget.add(accepted(to, content=Inline(bytes(size))), SNAPSHOT, 20)
            count += 1
    return count


def test_budget_is_limited_by_inputs_output_records_and_bytes() -> None:
    assert inputs_in_budget(BatchBudget(200), "u1@example.test") == 200
    assert inputs_in_budget(BatchBudget(200), "u1@example.test", CONTENT_BYTES_MAX // 20) == 20 + 20 % READ_MAX
    budget = BatchBudget(200)
    assert inputs_in_budget(budget, "all@example.test") == 2
    steps: list[int] = []
    for _ in range(100):
        inputs_in_budget(budget, "u1@example.test", steps=steps)
    assert max(steps[:10]) == 1
    assert max(steps) == READ_MAX  # the estimate decays


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of records in each commit."""
    sizes: list[int] = []
    write = MemoryLog.write

    def watched(self: MemoryLog, records: Sequence[Record], consumed: Sequence[Any] = ()) -> None:
        sizes.append(len(records))
        write(self, records, consumed)

    monkeypatch.setattr(MemoryLog, "write", watched)
    return sizes


@pytest.mark.slow
async def test_flood_to_a_list_is_split_into_commits_and_does_not_block_other_mail(commits: list[int]) -> None:
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
    records = floods * len(MEMBERS) * 2  # throttled deliveries have no Dispatched yet
    assert sum(commits) >= records
    assert max(commits) <= OUTPUT_RECORDS_MAX + 3 * len(MEMBERS) + 10
    assert turns >= records // shard.YIELD_INTERVAL
