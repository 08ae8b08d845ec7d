"""A router that lost its shard while it was stopped is fenced: its open transaction cannot commit.

The shard's next owner took over the transactional id. The stopped router is resumed as soon as the next owner has
committed; if it slept longer than its commit time-out, it would abort by itself and the brokers' refusal would not be
seen. Every delivery is dispatched exactly once (read from `dispatched`) and arrives exactly once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from mail.log.codec import decode
from mail.log.kafka.access import make_access
from mail.log.topics import DISPATCHED, shard_of
from mail.message import queue_id_of
from mail.record import Dispatched
from tests.support.faults.accounting import Sink
from tests.support.faults.cases import MailLoad, missing, settle, wait_for_empty_queue
from tests.support.servers.mail_cluster import HOSTS, MailCluster
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.fault, pytest.mark.timeout(240)]

TRIES = 4


class Dispatches:
    """Reads all records committed to `dispatched` from now on."""

    def __init__(self, cluster: MailCluster) -> None:
        self.seen: Counter[tuple[str, int]] = Counter()
        self._log = cluster.log

    async def __aenter__(self) -> Dispatches:
        self._consumer = AIOKafkaConsumer(isolation_level="read_committed", **make_access(self._log).client_options())
        await self._consumer.start()
        partitions = [TopicPartition(self._log.prefix + DISPATCHED.name, n) for n in range(self._log.delivery_shards)]
        self._consumer.assign(partitions)
        await self._consumer.seek_to_end(*partitions)
        for partition in partitions:
            await self._consumer.position(partition)
        self._reading = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        async for record in self._consumer:
            if record.value is not None:
                dispatched = decode(record.value, Dispatched)
                self.seen[dispatched.delivery.id, dispatched.number] += 1

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()


async def test_fenced_router_commits_nothing(mail_cluster: MailCluster, round_number: Iterator[int]) -> None:
    async with Sink(port=mail_cluster.sink_port, hosts=HOSTS) as sink, Dispatches(mail_cluster) as dispatches:
        load = MailLoad(mail_cluster, f"fence{next(round_number)}", 100_000, 40)
        try:
            for _ in range(TRIES):
                if await _sleeps_and_is_fenced(mail_cluster, dispatches):
                    break
            else:
                raise AssertionError(f"woken {TRIES} times, and each time it gave its commit up before it was refused")
            load.stop()
            await load.wait_until_done(60)
            await settle(load, sink, mail_cluster)
            assert not missing(load, sink, mail_cluster)
            assert await wait_for_empty_queue(mail_cluster) == []
            again = {key: count for key, count in dispatches.seen.items() if count > 1}
            assert not again, "dispatched twice"
            assert len(dispatches.seen) > 200
            assert sink.duplicates == 0
        finally:
            load.stop()
            await load.close()


async def _sleeps_and_is_fenced(cluster: MailCluster, dispatches: Dispatches) -> bool:
    """Stop a router inside its transaction until another router has committed in that shard, then resume it.

    Returns True if the brokers refused its commit, False if it slept too long and aborted by itself.
    """
    stale = cluster.members_of("router")[0]
    await wait_until(
        lambda: cluster.has_owners("router", cluster.log.shards), deadline_seconds=40, what="an owner each"
    )
    logged_before = len(stale.output())
    stale.arm("in-transaction")
    try:
        await wait_until(lambda: stale.is_frozen, what="the router inside its transaction")
        hit = stale.hits()[-1]
        assert hit["point"] == "in-transaction"
        assert hit["dispatches"] > 0
        await asyncio.sleep(1)  # read what was committed before
        before = set(dispatches.seen)

        def has_another_owner() -> bool:
            new = dispatches.seen.keys() - before
            return any(shard_of(queue_id_of(id_), cluster.log.shards) == hit["shard"] for id_, _ in new)

        await wait_until(has_another_owner, deadline_seconds=40, what="a commit of the shard's next owner")
        slept = time.monotonic() - hit["time"]
    finally:
        stale.disarm()
        stale.thaw()
    fenced = f'"shard taken over by another router","transactional_id":"{cluster.log.prefix}router-{hit["shard"]}"'
    late = f'"routing paused","shard":{hit["shard"]},'

    def outcome() -> set[str]:
        return {words for words in (fenced, late) if words in stale.output()[logged_before:]}

    await wait_until(outcome, what="what became of its commit")
    print(f"woken after {slept:.1f} s: {'fenced' if fenced in outcome() else 'late'}")
    await wait_until(lambda: all(cluster.owners("router").values()), deadline_seconds=40, what="its return")
    return fenced in outcome()
