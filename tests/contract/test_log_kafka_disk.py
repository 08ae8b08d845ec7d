"""Disk space of consumed records is freed, on a broker whose retention check runs every half second, not every 5
minutes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mail.log.kafka import topics
from tests.contract.log_contract.harness import read_inputs, records_of, router_shard_of
from tests.support.builders.records import accepted
from tests.support.servers.kafka import ClusterFactory
from tests.support.servers.kafka_log import running, settings_on
from tests.support.servers.ports import wait_until

pytestmark = pytest.mark.kafka_cluster

MEGABYTE = 1 << 20


def disk_use(folder: Path, topic: str) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.log") if topic in str(file.parent.name))


async def test_purge_frees_disk_space_and_keeps_unconsumed_records(
    kafka_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(topics._PURGED, "segment.bytes", str(MEGABYTE))
    cluster = await asyncio.to_thread(
        kafka_cluster,
        1,
        settings={
            "log.retention.check.interval.ms": "500",
            "log.segment.delete.delay.ms": "500",
            "log.initial.task.delay.ms": "500",
        },
    )
    settings = settings_on(cluster.bootstrap, shards=1, delivery_shards=1)
    async with running(settings) as log:
        content = bytes(100_000)
        for n in range(0, 120, 10):
            await asyncio.gather(*(log.append(accepted(n + k, content)) for k in range(10)))
        full = disk_use(cluster.directory, settings.prefix + "accepted")
        assert full > 11 * MEGABYTE
        async with router_shard_of(log) as router:
            for _ in range(5):
                await router.commit([], await read_inputs(router, 20, limit=20))
            await log.purge()
            await wait_until(
                lambda: disk_use(cluster.directory, settings.prefix + "accepted") < 4 * MEGABYTE,
                deadline_seconds=30,
                what="less disk in use",
            )
            assert records_of(await read_inputs(router, 20)) == [accepted(n, content) for n in range(100, 120)]
