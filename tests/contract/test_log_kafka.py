"""Log contract on a real Kafka: with one node, and with three nodes and replicated topics."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.log_contract import Harness, LogContract
from tests.support.servers import kafka
from tests.support.servers.kafka_log import KafkaHarness


@pytest.mark.kafka
class TestLogOnKafka(LogContract):
    """The whole contract."""

    @pytest.fixture
    def harness(self, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> Harness:
        return KafkaHarness(kafka_bootstrap, monkeypatch)


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[str]:
    with kafka.cluster(3) as cluster:
        yield cluster.bootstrap


@pytest.mark.kafka_cluster
class TestLogOnThreeNodes(LogContract):
    """The whole contract, on topics that pass the safety checks."""

    @pytest.fixture
    def harness(self, three_nodes: str, monkeypatch: pytest.MonkeyPatch) -> Harness:
        return KafkaHarness(three_nodes, monkeypatch, replication=3, durability="safe")
