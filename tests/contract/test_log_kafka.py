"""Log contract on a real Kafka: with one node, and with three nodes and replicated topics."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mail.log.codec import decode
from mail.log.kafka.access import make_access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.decode import read_compacted
from mail.record import QueueEntry
from tests.contract.log_contract import Harness, LogContract
from tests.support.added_topic import USAGE, add_topic
from tests.support.builders.records import queue_entry
from tests.support.servers import kafka
from tests.support.servers.kafka_log import KafkaHarness, running, settings_on


@pytest.mark.kafka
class TestLogOnKafka(LogContract):
    """The whole contract."""

    @pytest.fixture
    def harness(self, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> Harness:
        return KafkaHarness(kafka_bootstrap, monkeypatch)


@pytest.mark.kafka
async def test_a_topic_added_to_the_data_is_created_and_served(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_topic(monkeypatch)
    settings = settings_on(kafka_bootstrap, shards=3, delivery_shards=2)
    async with running(settings) as log:
        access = make_access(settings)
        async with ClusterInfo(access) as cluster_info:
            state = (await cluster_info.topics())[USAGE]
        assert (state.partitions, state.config["cleanup.policy"]) == (1, "compact")
        for record in (queue_entry(1), queue_entry(2), queue_entry(2, attempts=1)):
            await log.append(record)
        frames = await read_compacted(access, access.partition(USAGE, 0))
        assert [decode(frame, QueueEntry) for frame in frames.values()] == [queue_entry(1), queue_entry(2, attempts=1)]


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
