"""Offset committer: commits, retries after outages, and the limit of unconfirmed deliveries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from aiokafka import OffsetAndMetadata, TopicPartition
from structlog.testing import capture_logs

from mail.log import LogUnavailable, ShardLost
from mail.log.kafka import offset_committer as offset_committer
from mail.log.kafka.committed_offset import CommittedOffset
from mail.log.kafka.offset_committer import OffsetCommitter
from tests.support.kafka_timeouts import set_timeouts
from tests.support.servers.ports import wait_until

MANY = 1000


@dataclass
class Shard:
    """The part of a delivery shard that the committer uses."""

    partition: TopicPartition = field(default_factory=lambda: TopicPartition("dispatched", 0))
    low: int = 0
    is_lost: bool = False

    def to_commit(self) -> CommittedOffset:
        return CommittedOffset(self.low, "")

    def revoke(self) -> None:
        self.is_lost = True


@dataclass
class OwnerGroup:
    answers: Iterator[Exception | None]
    committed: list[int] = field(default_factory=list)

    async def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        answer = next(self.answers)
        if answer is not None:
            raise answer
        self.committed += [offset.offset for offset in offsets.values()]


def make_committer(*answers: Exception | None) -> tuple[OffsetCommitter, Shard, OwnerGroup]:
    shard, group = Shard(), OwnerGroup(iter(answers))
    return OffsetCommitter(lambda: [shard], group.commit), shard, group  # type: ignore[list-item, return-value]


def finish(committer: OffsetCommitter, shard: Shard, count: int) -> None:
    for _ in range(count):
        shard.low += 1
        committer.count_finished()


async def test_too_many_unconfirmed_deliveries_stop_new_ones() -> None:
    committer, shard, group = make_committer(LogUnavailable("connection lost"), None)
    finish(committer, shard, MANY)
    assert committer.is_behind
    assert not await committer.commit()
    assert committer.is_behind
    assert await committer.commit()
    assert (committer.is_behind, group.committed) == (False, [MANY])


async def test_a_commit_refused_after_a_rebalance_stops_nothing() -> None:
    committer, shard, group = make_committer(ShardLost("excluded"), None)
    finish(committer, shard, MANY)
    assert await committer.commit()
    assert (shard.is_lost, committer.is_behind, group.committed) == (True, False, [])
    finish(committer, shard, 1)
    assert await committer.commit()
    assert group.committed == [MANY + 1]


async def test_an_outage_ends_when_another_owner_has_the_shards() -> None:
    committer, shard, _ = make_committer(LogUnavailable("connection lost"), ShardLost("excluded"))
    finish(committer, shard, 1)
    assert not await committer.commit()
    assert committer.outage == "connection lost"
    assert await committer.commit()
    assert committer.outage is None


async def test_an_outage_ends_without_shards() -> None:
    shards = [Shard()]
    group = OwnerGroup(iter([LogUnavailable("connection lost")]))
    committer = OffsetCommitter(lambda: shards, group.commit)  # type: ignore[arg-type, return-value]
    finish(committer, shards[0], 1)
    assert not await committer.commit()
    shards.clear()
    assert await committer.commit()
    assert committer.outage is None


async def test_a_confirmed_offset_is_not_committed_again() -> None:
    committer, shard, group = make_committer(None)
    finish(committer, shard, 3)
    assert await committer.commit()
    committer.count_finished()  # progress of a shard that is not owned any more
    assert await committer.commit()
    assert (committer.is_behind, group.committed) == (False, [3])


@pytest.mark.parametrize("count", [1, 10])
async def test_a_few_unconfirmed_deliveries_stop_nothing(count: int) -> None:
    committer, shard, _ = make_committer(LogUnavailable("slow"))
    finish(committer, shard, count)
    assert not await committer.commit()
    assert not committer.is_behind


async def test_an_idle_committer_recommits_and_detects_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, idle_write_seconds=0.01)
    committer, shard, group = make_committer(
        None, LogUnavailable("connection lost"), LogUnavailable("connection lost"), *[None] * 99
    )
    finish(committer, shard, 3)
    outages: list[str | None] = []
    commit = group.commit

    async def watched(offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        outages.append(committer.outage)
        await commit(offsets)

    committer._commit_offsets = watched
    with capture_logs() as lines:
        running = asyncio.create_task(committer.run())
        await wait_until(lambda: len(group.committed) >= 3)
        running.cancel()
    assert set(group.committed) == {3}
    assert outages[:5] == [None, None, "connection lost", "connection lost", None]
    assert [line["event"] for line in lines] == ["offset commit failed, retrying"]
