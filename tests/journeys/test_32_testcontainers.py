"""Journey 32: another project uses eilpost in its tests with testcontainers.

The image and a broker run in their own network on this run's Docker engine; the tests' code for a broker in a container
(`tests.support.servers.kafka`) runs on the same engine. The broker's image is a substitute for `apache/kafka`.
"""

from __future__ import annotations

import smtplib
import warnings
from collections.abc import Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from tests.support.containers import standins
from tests.support.containers.engine import Engine
from tests.support.containers.images import image
from tests.support.servers import kafka
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.kafka_cluster, pytest.mark.timeout(240)]

BROKER = {
    "KAFKA_NODE_ID": "1",
    "KAFKA_PROCESS_ROLES": "broker,controller",
    "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
    "KAFKA_ADVERTISED_LISTENERS": "PLAINTEXT://broker:9092",
    "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@127.0.0.1:9093",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "KAFKA_LOG_DIRS": "/var/lib/kafka/data",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
}
EILPOST = {
    "EILPOST_NODE__HOSTNAME": "mx.example.test",
    "EILPOST_LOG__URL": "kafka://broker:9092",
    "EILPOST_LOG__SHARDS": "2",
    "EILPOST_LOG__DELIVERY_SHARDS": "2",
    "EILPOST_LOG__REPLICATION": "1",
    "EILPOST_LOG__DURABILITY": "dev",
    "EILPOST_INGRESS__SMTP_LISTEN": "0.0.0.0:2525",
    "EILPOST_INGRESS__SENDER_DOMAIN_MUST_RESOLVE": "false",
}
CONNECT = ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9092"]
# The directory and mailboxes of `eilpost demo` on this log.
DEMO = ("demo", "--dir", "/tmp/demo")
FETCH = """
import poplib
box = poplib.POP3('127.0.0.1', 2110)
box.user('alice@example.test'); box.pass_('eilpost-demo')
print(b' '.join(box.retr(1)[1]).decode())"""


@pytest.fixture
def on_our_engine(docker_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("DOCKER_HOST", docker_engine.address)
    monkeypatch.setenv("DOCKER_CONFIG", docker_engine.environment["DOCKER_CONFIG"])
    # Ryuk would be one more image; the engine ends with the run.
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # docker-py leaves its sockets to the garbage collector
        yield docker_engine


def container(tag: str, network: Network, variables: dict[str, str], *command: str) -> DockerContainer:
    made = DockerContainer(tag, network=network, env=variables)
    return made.with_command(list(command)) if command else made


async def test_message_passes_through_the_image_and_a_broker(on_our_engine: Engine) -> None:
    tag, broker_tag = image().load_into(on_our_engine), standins.kafka(on_our_engine)
    with (
        Network() as network,
        container(broker_tag, network, BROKER).with_network_aliases("broker") as broker,
    ):
        await wait_until(lambda: broker.exec(CONNECT).exit_code == 0, deadline_seconds=90)
        with container(tag, network, EILPOST, "topics", "create") as topics:
            status = topics.get_wrapped_container().wait(timeout=90)["StatusCode"]
            assert status == 0, topics.get_logs()
        with container(tag, network, EILPOST, *DEMO).with_exposed_ports(2525) as eilpost:
            port = int(eilpost.get_exposed_port(2525))
            await wait_until(lambda: b"eilpost is ready" in eilpost.get_logs()[0], deadline_seconds=60)
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                client.sendmail("bob@example.test", ["alice@example.test"], b"Subject: contained\r\n\r\nHello\r\n")

            def arrived() -> bool:
                return b"Subject: contained" in eilpost.exec(["python", "-c", FETCH]).output

            await wait_until(arrived, deadline_seconds=60)


async def test_tests_can_use_a_broker_in_a_container(on_our_engine: Engine) -> None:
    with kafka.container(standins.kafka(on_our_engine)) as bootstrap:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            assert await admin.list_topics() == []
        finally:
            await admin.close()
