"""A hanging broker among three real ones: one client's time-out makes all clients of the process avoid it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from aiokafka import client as aiokafka_client

from mail.log import LogUnavailable
from mail.log.kafka.access import make_access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.partition_reader import PartitionReader
from mail.log.topics import ACCEPTED, QUEUE
from tests.support.servers.kafka import QUICK, ClusterFactory
from tests.support.servers.kafka_log import make_topics, running, settings_on
from tests.support.servers.ports import wait_until

SHARDS = 3


@pytest.mark.kafka_cluster
async def test_no_client_connects_to_a_broker_with_an_open_circuit(
    kafka_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The cluster never removes the broker during this test, so it stays the leader of its partitions.
    patient = QUICK | {"broker.session.timeout.ms": "600000"}
    brokers = await asyncio.to_thread(kafka_cluster, 3, settings=patient)
    settings = settings_on(brokers.bootstrap, shards=SHARDS, delivery_shards=1, replication=3)
    await make_topics(settings)
    access = make_access(settings)
    hung = f"127.0.0.1:{brokers.port(2)}"
    connected: list[str] = []
    create_conn = aiokafka_client.create_conn

    async def counting(host: str, port: int, **options: Any) -> Any:
        connected.append(f"{host}:{port}")
        return await create_conn(host, port, **options)

    monkeypatch.setattr(aiokafka_client, "create_conn", counting)
    partitions = [access.partition(topic, n) for topic in (ACCEPTED, QUEUE) for n in range(SHARDS)]
    reader = PartitionReader(access, partitions)
    brokers.node(2).freeze()
    try:
        await access.circuit_breaker.check("127.0.0.1", brokers.port(2))
        async with ClusterInfo(access) as cluster_info:
            assert len(await cluster_info.topics(with_config=False)) > 0
        with pytest.raises(LogUnavailable):  # the broker leads some of these
            await reader.open(dict.fromkeys(partitions))
        assert connected
        assert hung not in connected
    finally:
        brokers.node(2).thaw()
    await wait_until(lambda: brokers.alive(observer=2) == {1, 2, 3}, what="broker 2 answers again")

    async def is_used() -> bool:
        await reader.open(dict.fromkeys(partitions))
        return hung in connected

    async with asyncio.timeout(30):
        while not await is_used():
            await asyncio.sleep(0.5)
    await reader.close()


@pytest.mark.kafka
async def test_a_start_opens_the_circuit_of_a_hanging_address(kafka_bootstrap: str) -> None:
    """Otherwise every later client would try this address first, with a time-out each."""
    with socket.create_server(("127.0.0.1", 0)) as hangs:  # accepts connections and does not respond
        hung = f"127.0.0.1:{hangs.getsockname()[1]}"
        settings = settings_on(f"{hung},{kafka_bootstrap}", shards=1, delivery_shards=1)
        async with running(settings) as log:
            circuit_breaker = log._access.circuit_breaker
            await wait_until(
                lambda: circuit_breaker.available([hung, kafka_bootstrap]) == [kafka_bootstrap], what="known to hang"
            )
