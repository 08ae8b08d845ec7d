"""Log contract on a real Kafka: with one node, and with three nodes and replicated topics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from mail.log.kafka.access import make_access
from mail.log.kafka.cluster_info import ClusterInfo
from tests.contract.log_contract import Harness, LogContract
from tests.support.added_topic import USAGE, WITH_USAGE, Usage, UsageTombstone
from tests.support.servers import kafka
from tests.support.servers.kafka_log import KafkaHarness, running, settings_on


@pytest.mark.kafka
class TestLogOnKafka(LogContract):
    """The whole contract."""

    @pytest.fixture
    def harness(self, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> Harness:
        return KafkaHarness(kafka_bootstrap, monkeypatch)


@pytest.mark.kafka
async def test_a_topic_added_to_the_data_is_created_and_followed(kafka_bootstrap: str) -> None:
    settings = settings_on(kafka_bootstrap, shards=3, delivery_shards=2)
    async with running(settings, WITH_USAGE) as log:
        async with ClusterInfo(make_access(settings, topics=WITH_USAGE)) as cluster_info:
            state = (await cluster_info.topics())[USAGE]
        assert (state.partitions, state.config["cleanup.policy"]) == (1, "compact")
        async with aclosing(log.follow(USAGE)) as changes, asyncio.timeout(30):
            assert list(await anext(changes)) == []
            for record in (Usage("a", 1), Usage("b", 1), Usage("b", 2), UsageTombstone("a")):
                await log.append(record)
                assert list(await anext(changes)) == [record]
        async with aclosing(log.follow(USAGE)) as changes, asyncio.timeout(30):
            assert list(await anext(changes)) == [Usage("b", 2)]


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
