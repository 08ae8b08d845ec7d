"""Followers of a compacted topic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from mail.log import Damaged
from mail.log.topics import QUEUE, shard_of_message
from mail.record import QueueTombstone
from mail.settings import LogSettings
from tests.contract.log_contract.harness import Harness, router_shard_of
from tests.support.builders.records import delivery, queue_entry


async def until(changes: AsyncIterator[Sequence[Any]], last: object) -> list[Any]:
    """What a follower got up to `last`."""
    records: list[Any] = []
    async with asyncio.timeout(20):
        while last not in records:
            records += await anext(changes)
    assert records[-1] == last
    return records


class FollowTests:
    async def test_a_follower_gets_the_last_record_of_each_key_then_the_changes(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        for record in (
            queue_entry(1),
            queue_entry(2),
            queue_entry(2, 1),
            queue_entry(3),
            QueueTombstone(delivery(3).id),
        ):
            await log.append(record)
        async with aclosing(log.follow(QUEUE)) as changes, asyncio.timeout(20):
            state = await anext(changes)
            assert sorted(state, key=lambda entry: entry.delivery.id) == [queue_entry(1), queue_entry(2, 1)]
            for record in (queue_entry(1, 1), QueueTombstone(delivery(1).id), queue_entry(4)):
                await log.append(record)
                assert await until(changes, record) == [record]
        await log.close()

    async def test_a_follower_of_an_empty_topic_is_told_so(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        async with aclosing(log.follow(QUEUE)) as changes, asyncio.timeout(20):
            assert list(await anext(changes)) == []
        await log.close()

    async def test_followers_see_commits_whole_and_independently(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=1))
        async with (
            aclosing(log.follow(QUEUE)) as first,
            aclosing(log.follow(QUEUE)) as second,
            asyncio.timeout(30),
        ):
            assert [list(await anext(each)) for each in (first, second)] == [[], []]
            async with router_shard_of(log) as shard:
                await shard.commit([queue_entry(number) for number in range(50)], [])
                await shard.commit([queue_entry(99)], [])
            expected = [*(queue_entry(number) for number in range(50)), queue_entry(99)]
            for each in (first, second):
                assert await until(each, queue_entry(99)) == expected
        await log.close()

    async def test_a_slow_follower_gets_the_last_change_of_each_key(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=1))
        async with aclosing(log.follow(QUEUE)) as changes, asyncio.timeout(20):
            await anext(changes)
            for attempts in range(20):
                await log.append(queue_entry(1, attempts))
            await log.append(queue_entry(2))
            records = await until(changes, queue_entry(2))
            assert records[-2] == queue_entry(1, 19)
        await log.close()

    async def test_a_follower_gets_a_damaged_record_as_damaged(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        key = delivery(1).id
        shard = shard_of_message(delivery(1).message.queue_id, log.counts)
        await harness.append_frame(log, QUEUE, shard, b"no frame", key)
        await log.append(queue_entry(2))
        async with aclosing(log.follow(QUEUE)) as changes, asyncio.timeout(20):
            state = await anext(changes)
        (damaged,) = [record for record in state if isinstance(record, Damaged)]
        assert (damaged.topic, damaged.shard, damaged.key, damaged.frame) == ("queue", shard, key, b"no frame")
        assert queue_entry(2) in state
        await log.close()
