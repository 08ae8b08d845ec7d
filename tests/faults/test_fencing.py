"""A router that slept through the loss of its shard wakes up inside its transaction, and can commit nothing.

The broker is the lock: the shard's next owner took its transactional id. Every delivery is dispatched exactly once, as
read from `dispatched` itself, and arrives exactly once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from mail.log.codec import decode
from mail.log.kafka.access import make_access
from mail.log.topics import DISPATCHED
from mail.record import Dispatched
from tests.support.accounting import Sink
from tests.support.cells import Load, empty_queue, missing, settle
from tests.support.mailcluster import HOSTS, MailCluster
from tests.support.ports import wait_until

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.fault, pytest.mark.timeout(180)]


class Dispatches:
    """Reads all that is committed to `dispatched` from now on."""

    def __init__(self, cluster: MailCluster) -> None:
        self.seen: Counter[tuple[str, int]] = Counter()
        self._log = cluster.log

    async def __aenter__(self) -> Dispatches:
        self._consumer = AIOKafkaConsumer(isolation_level="read_committed", **make_access(self._log).client())
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
                dispatched = decode(record.value)
                assert isinstance(dispatched, Dispatched)
                self.seen[dispatched.delivery.id, dispatched.number] += 1

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()


async def test_a_stale_router_commits_nothing(mail_cluster: MailCluster, turn: Iterator[int]) -> None:
    stale, other = mail_cluster.of("router")
    async with Sink(port=mail_cluster.sink_port, hosts=HOSTS) as sink, Dispatches(mail_cluster) as dispatches:
        load = Load(mail_cluster, f"fence{next(turn)}", 300, 40)
        try:
            await asyncio.sleep(1)
            said = len(stale.output())
            stale.arm("in-transaction")
            await wait_until(lambda: stale.is_frozen, what="the router inside its transaction")
            hit = stale.hits()[-1]
            assert hit["point"] == "in-transaction"
            assert hit["dispatches"] > 0
            everything = list(range(mail_cluster.log.shards))
            await wait_until(
                lambda: mail_cluster.owners("router")[other.name] == everything,
                deadline_seconds=40,
                what="the other router's taking over",
            )
            await asyncio.sleep(1)  # it has opened the shard, and routes what the sleeper had in hand
            stale.thaw()
            await load.ended(120)
            await settle(load, sink, mail_cluster)
            assert not missing(load, sink, mail_cluster)
            assert await empty_queue(mail_cluster) == []
            # It tried, and was told; or was told nothing in time, which is as much.
            fenced = f'"shard taken over by another router","transactional_id":"{mail_cluster.log.prefix}router-'
            late = f'"routing pauses","shard":{hit["shard"]},'
            told = stale.output()[said:]
            print("fenced" if f"{fenced}{hit['shard']}" in told else "late")
            assert f"{fenced}{hit['shard']}" in told or late in told
            again = {key: count for key, count in dispatches.seen.items() if count > 1}
            assert not again, "dispatched twice"
            assert len(dispatches.seen) > 200
            assert sink.duplicates == 0
            await wait_until(
                lambda: all(mail_cluster.owners("router").values()), deadline_seconds=40, what="its return"
            )
        finally:
            load.stop()
            await load.close()
            stale.thaw()
