"""Our topics on brokers as Kafka comes: with `auto.create.topics.enable = true`, three of them, each of which hears of
a new topic in its own time.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest

from eilpost.doctor.brokers import examine
from mail.log import LogUnusable
from mail.log.kafka import KafkaLog
from mail.log.kafka.access import make_access
from mail.log.kafka.lookout import Lookout
from mail.log.topics import ALL_TOPICS
from tests.support import kafka
from tests.support.kafka_log import make_topics, settings_on

pytestmark = pytest.mark.kafka_cluster


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with kafka.cluster(3) as cluster:
        yield cluster.bootstrap


async def test_asking_for_topics_that_are_missing_makes_none(bootstrap: str) -> None:
    settings = settings_on(bootstrap)
    with pytest.raises(LogUnusable, match="run `eilpost topics create`"):
        await KafkaLog(settings).start()
    findings = await examine(settings, "", {})
    assert any("run `eilpost topics create`" in finding.advice for finding in findings)
    async with Lookout(make_access(settings)) as lookout:
        assert await lookout.topics() == {}


async def test_topics_that_were_made_are_known_to_every_broker(bootstrap: str) -> None:
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        for _ in range(5):
            settings = settings_on(bootstrap, replication=3)
            names = [settings.prefix + topic.name for topic in ALL_TOPICS]
            await make_topics(settings)
            for broker in client.cluster.brokers():
                answer = await client.send(broker.nodeId, MetadataRequest(names, allow_auto_topic_creation=False))
                assert {name: code for code, name, *_ in answer.topics} == dict.fromkeys(names, 0)
    finally:
        await client.close()
