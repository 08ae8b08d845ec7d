"""Processes of every role join and leave while mail flows, at the time-outs a user has: nothing is lost, nothing comes
twice, and no rebalance stops deliveries for 10 s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.support import kafka
from tests.support.accounting import Sink
from tests.support.cells import Load, empty_queue, missing, settle
from tests.support.mailcluster import HOSTS, MailCluster
from tests.support.takeover import plant_lines, take_over

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.fault, pytest.mark.timeout(240)]

PAUSE_SECONDS = 10.0
LINES = 10_000


@pytest.fixture
def plain_cluster(three_brokers: kafka.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailCluster]:
    """One process of each role to begin with, exactly as a user starts them."""
    cluster = MailCluster(
        three_brokers,
        tmp_path_factory.mktemp("plain"),
        counts={"ingress": 2, "router": 1, "delivery": 1, "mailstore": 1},
        faulty=False,
        defaults=True,
    )
    cluster.make_topics()
    try:
        yield cluster
    finally:
        cluster.stop()


async def test_join_and_leave(plain_cluster: MailCluster) -> None:
    cluster = plain_cluster
    first = [member.name for member in cluster.members.values() if member.name != "ingress-2"]
    await asyncio.to_thread(cluster.start, first)
    await asyncio.to_thread(cluster.settle)
    steps: dict[str, float] = {}
    async with Sink(port=cluster.sink_port, hosts=HOSTS) as sink:
        load = Load(cluster, "scale", 100_000, 30)

        async def step(what: str, done: asyncio.Future[object]) -> None:
            """Let it happen under load, then look for the longest time without a delivery."""
            began = time.monotonic()
            await done
            await asyncio.sleep(4)
            times = [*sorted(at for at in sink.first_at.values() if at >= began - 1), time.monotonic()]
            steps[what] = max(later - at for at, later in pairwise(times))

        def start(role: str, name: str | None = None) -> asyncio.Future[object]:
            member = cluster.members[name] if name else cluster.add(role)
            return asyncio.ensure_future(asyncio.to_thread(cluster.start, [member.name]))

        def leave(name: str) -> asyncio.Future[object]:
            return asyncio.ensure_future(asyncio.to_thread(cluster.members[name].stop))

        try:
            await step("nothing", asyncio.ensure_future(asyncio.sleep(1)))
            await step("a second ingress joins", start("ingress", "ingress-2"))
            await step("a second router joins", start("router"))
            await step("a second delivery joins", start("delivery"))
            await step("a second mailstore joins", start("mailstore"))
            await step("the first router leaves", leave("router-1"))
            await step("the first delivery leaves", leave("delivery-1"))
            await step("the first mailstore leaves", leave("mailstore-1"))
            await step("the first ingress leaves", leave("ingress-1"))
            load.stop()
            await load.ended(60)
            await settle(load, sink, cluster)
            assert not missing(load, sink, cluster)
            assert await empty_queue(cluster) == []
        finally:
            load.stop()
            await load.close()
        delays = [sink.first_at[id_] - load.sent_at[id_] for id_ in load.promised if id_ in sink.first_at]
        print(f"{len(load.promised)} accepted, {sink.duplicates} duplicates, longest delay {max(delays):.1f} s")
        print("; ".join(f"{what} {seconds:.1f} s" for what, seconds in steps.items()))
        assert sink.duplicates == 0
        assert max(steps.values()) < PAUSE_SECONDS
        letters = [posting for posting in load.promised.values() if "alice@example.test" in posting.recipients]
    # The second mailstore serves what both deliveries kept.
    left = cluster.members["mailstore-2"]
    assert len(await asyncio.to_thread(left.mailbox, "alice")) >= len(letters) > 0


async def test_a_full_shard_changes_hands(plain_cluster: MailCluster) -> None:
    cluster = plain_cluster
    await plant_lines(cluster, LINES, 1)
    cluster.add("router")
    await asyncio.to_thread(cluster.start, ["router-1", "router-2"])
    seconds = await take_over(cluster, LINES, 1, kill=False)
    print(f"a shard with {LINES} deferred deliveries was taken over in {seconds:.1f} s")
    assert seconds < PAUSE_SECONDS
