"""The marks of a process: what is confirmed, what is not, and when no more is to be begun."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from aiokafka import OffsetAndMetadata, TopicPartition
from structlog.testing import capture_logs

from mail.log import LogUnavailable, ShardLost
from mail.log.kafka import committing as committing_module
from mail.log.kafka.committing import Committing
from mail.log.kafka.marks import Mark
from tests.support.ports import wait_until

MANY = 1000


@dataclass
class Shard:
    """As much of a delivery shard as its committing looks at."""

    partition: TopicPartition = field(default_factory=lambda: TopicPartition("dispatched", 0))
    low: int = 0
    is_lost: bool = False

    def mark(self) -> Mark:
        return Mark(self.low, "")

    def lose(self) -> None:
        self.is_lost = True


@dataclass
class Group:
    answers: Iterator[Exception | None]
    committed: list[int] = field(default_factory=list)

    async def commit(self, marks: dict[TopicPartition, OffsetAndMetadata]) -> None:
        answer = next(self.answers)
        if answer is not None:
            raise answer
        self.committed += [mark.offset for mark in marks.values()]


def committing(*answers: Exception | None) -> tuple[Committing, Shard, Group]:
    shard, group = Shard(), Group(iter(answers))
    return Committing(lambda: [shard], group.commit), shard, group  # type: ignore[list-item, return-value]


def finish(one: Committing, shard: Shard, count: int) -> None:
    for _ in range(count):
        shard.low += 1
        one.finished()


async def test_what_is_not_confirmed_stops_what_would_begin() -> None:
    one, shard, group = committing(LogUnavailable("the way is cut"), None)
    finish(one, shard, MANY)
    assert one.is_behind
    assert not await one.settle()
    assert one.is_behind
    assert await one.settle()
    assert (one.is_behind, group.committed) == (False, [MANY])


async def test_what_somebody_else_owns_stops_nothing() -> None:
    one, shard, group = committing(ShardLost("left out"), None)
    finish(one, shard, MANY)
    assert await one.settle()
    assert (shard.is_lost, one.is_behind, group.committed) == (True, False, [])
    finish(one, shard, 1)
    assert await one.settle()
    assert group.committed == [MANY + 1]


async def test_an_outage_ends_when_the_shards_have_another_owner() -> None:
    one, shard, _ = committing(LogUnavailable("the way is cut"), ShardLost("left out"))
    finish(one, shard, 1)
    assert not await one.settle()
    assert one.outage == "the way is cut"
    assert await one.settle()
    assert one.outage is None


async def test_an_outage_ends_when_no_shard_is_left() -> None:
    shards = [Shard()]
    group = Group(iter([LogUnavailable("the way is cut")]))
    one = Committing(lambda: shards, group.commit)  # type: ignore[arg-type, return-value]
    finish(one, shards[0], 1)
    assert not await one.settle()
    shards.clear()
    assert await one.settle()
    assert one.outage is None


async def test_what_is_confirmed_is_not_committed_again() -> None:
    one, shard, group = committing(None)
    finish(one, shard, 3)
    assert await one.settle()
    one.finished()  # news of a shard that is not ours any more
    assert await one.settle()
    assert (one.is_behind, group.committed) == (False, [3])


@pytest.mark.parametrize("count", [1, 10])
async def test_a_few_stop_nothing(count: int) -> None:
    one, shard, _ = committing(LogUnavailable("slow"))
    finish(one, shard, count)
    assert not await one.settle()
    assert not one.is_behind


async def test_without_news_a_mark_is_committed_again_and_shows_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing_module, "_IDLE_SECONDS", 0.01)
    one, shard, group = committing(
        None, LogUnavailable("the way is cut"), LogUnavailable("the way is cut"), *[None] * 99
    )
    finish(one, shard, 3)
    seen: list[str | None] = []
    commit = group.commit

    async def watched(marks: dict[TopicPartition, OffsetAndMetadata]) -> None:
        seen.append(one.outage)
        await commit(marks)

    one._commit = watched
    with capture_logs() as lines:
        running = asyncio.create_task(one.run())
        await wait_until(lambda: len(group.committed) >= 3)
        running.cancel()
    assert set(group.committed) == {3}
    assert seen[:5] == [None, None, "the way is cut", "the way is cut", None]
    assert [line["event"] for line in lines] == ["marks not committed"]
