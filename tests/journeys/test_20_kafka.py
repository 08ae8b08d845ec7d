"""Journey 20: a real Kafka with one node and with three stores records, and survives the loss of a node.

It tests the tests' Kafka, without eilpost.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from deploy.kafka.cluster import Cluster
from deploy.kafka.jars import BrokerError
from deploy.kafka.metadata import live_brokers
from tests.support.servers import supervised
from tests.support.servers.kafka import QUICK, ClusterFactory
from tests.support.servers.ports import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]


async def _make_topic(client: dict[str, Any], *, replicas: int) -> str:
    topic = f"journey-20-{uuid.uuid4().hex}"
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=replicas)])
    finally:
        await admin.close()
    return topic


async def _send(client: dict[str, Any], topic: str, *values: bytes) -> None:
    async with AIOKafkaProducer(**client, acks="all", request_timeout_ms=20_000) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)


async def _fetch(client: dict[str, Any], topic: str, count: int) -> list[bytes]:
    async with AIOKafkaConsumer(**client, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        async with asyncio.timeout(20):
            return [(await consumer.getone()).value for _ in range(count)]


@pytest.mark.kafka
async def test_shared_broker_stores_and_returns_records(kafka_bootstrap: str) -> None:
    client = {"bootstrap_servers": kafka_bootstrap}
    topic = await _make_topic(client, replicas=1)
    await _send(client, topic, b"one", b"two")
    assert await _fetch(client, topic, 2) == [b"one", b"two"]


@pytest.mark.kafka_cluster
async def test_topics_are_not_created_automatically(tmp_path: Path) -> None:
    cluster = Cluster(1, tmp_path)
    try:
        await asyncio.to_thread(cluster.start)
        async with AIOKafkaProducer(bootstrap_servers=cluster.bootstrap, request_timeout_ms=2000) as producer:
            with pytest.raises(KafkaError) as refused:
                await producer.send_and_wait("journey-20-nobody-made-me", b"lost", partition=0)
        assert isinstance(refused.value, UnknownTopicOrPartitionError) or "journey-20" in str(refused.value)
    finally:
        cluster.stop(timeout_seconds=0)


@pytest.mark.kafka_cluster
async def test_three_nodes_survive_the_loss_of_one(kafka_cluster: ClusterFactory) -> None:
    cluster = await asyncio.to_thread(kafka_cluster, 3, settings=QUICK)
    assert all(cluster.alive(observer=number) == {1, 2, 3} for number in (1, 2, 3))
    client = {"bootstrap_servers": cluster.bootstrap}
    topic = await _make_topic(client, replicas=3)
    await _send(client, topic, b"with three")

    dead = cluster.node(3)
    dead.kill()
    assert not dead.running()
    assert live_brokers(cluster.port(3)) == {}
    await _send(client, topic, b"with two")
    await wait_until(lambda: cluster.alive() == {1, 2}, what="the others see it go")

    # A stopped node keeps its connections open without replies.
    cluster.node(2).freeze()
    assert cluster.alive(observer=2) == frozenset()
    cluster.node(2).thaw()

    await asyncio.to_thread(cluster.restart, 3)
    await wait_until(lambda: cluster.alive(observer=1) == {1, 2, 3}, what="the others see it come back")
    await _send(client, topic, b"with three again")
    assert await _fetch(client, topic, 3) == [b"with three", b"with two", b"with three again"]


@pytest.mark.kafka_cluster
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
async def test_secured_listener_needs_tls_and_a_login(secured_node: Cluster, mechanism: str) -> None:
    secured = secured_node.credentials
    assert secured is not None
    trusting = ssl.create_default_context(cafile=str(secured.ca))
    trusting.load_cert_chain(secured.client_certificate, secured.client_key)
    client = {
        "bootstrap_servers": secured_node.addresses("secure"),
        "security_protocol": "SASL_SSL",
        "ssl_context": trusting,
        "sasl_mechanism": mechanism,
        "sasl_plain_username": secured.user,
        "sasl_plain_password": secured.password,
    }
    topic = await _make_topic(client, replicas=1)
    await _send(client, topic, b"in secret")
    assert await _fetch(client, topic, 1) == [b"in secret"]

    wrong = AIOKafkaProducer(**client | {"sasl_plain_password": "wrong"})
    with pytest.raises(KafkaError):
        await wrong.start()
    await wrong.stop()


@pytest.fixture(scope="module")
def secured_node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Cluster(1, tmp_path_factory.mktemp("kafka"), secure=True) as cluster:
        yield cluster


@pytest.mark.kafka_cluster
def test_brokers_end_with_the_command_that_started_them(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, str(ROOT / "deploy/kafka/broker.py")]
    start = [*command, "up", "--dir", tmp_path, "--port", str(port)]
    up = subprocess.Popen(start, stdout=subprocess.PIPE, text=True, process_group=supervised.group())
    assert up.stdout is not None
    try:
        while f'log.url = "kafka://127.0.0.1:{port}"' not in (line := up.stdout.readline()):
            assert line, "it ended by itself"
        assert live_brokers(port) == {1: port}
        status = subprocess.run([*command, "status", "--dir", tmp_path], capture_output=True, text=True, check=True)
        assert "reports as alive: [1]" in status.stdout
        second = subprocess.run([*command, "up", "--dir", tmp_path], capture_output=True, text=True)
        assert (second.returncode, second.stderr.strip()) == (2, f"a cluster is already running in {tmp_path}")
    finally:
        up.kill()
        up.wait()
        up.stdout.close()
    asyncio.run(wait_until(lambda: not _who_names(tmp_path), what="the broker's end"))
    assert subprocess.run([*command, "down", "--dir", tmp_path], capture_output=True).returncode == 1

    up = subprocess.Popen(start, stdout=subprocess.PIPE, text=True, process_group=supervised.group())
    try:
        assert up.stdout is not None
        while "is process" not in (line := up.stdout.readline()):
            assert line, "it ended by itself"
        up.send_signal(signal.SIGINT)
        assert up.communicate(timeout=30)[0] == f"Kafka stopped; the data stays in {tmp_path} for the next start.\n"
        assert up.returncode == 0
    finally:
        up.kill()
        up.wait()


def _who_names(folder: Path) -> list[str]:
    """Processes whose command line contains the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in words:
            found.append(process.name)
    return found


@pytest.mark.kafka_cluster
def test_used_port_and_changed_node_count_are_one_line_errors(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"id": "x", "nodes": 3, "secure": false}')
    with pytest.raises(BrokerError, match=r"was created with nodes: 3"):
        Cluster(1, tmp_path).start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"another process listens on 127.0.0.1:{port}"):
            Cluster(1, tmp_path / "other", base_port=port).start()
