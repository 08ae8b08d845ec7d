"""Topics on brokers with Kafka's default `auto.create.topics.enable = true`: three brokers, which learn of new topics
one after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest
from msgspec.structs import replace
from structlog.testing import capture_logs

from eilpost.doctor import brokers
from mail.log import Down, LogUnavailable, LogUnusable, Usable
from mail.log.kafka import KafkaLog
from mail.log.kafka.access import make_access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.topics import problems
from mail.log.topics import ALL_TOPICS, tenant_prefix
from tests.support.builders.records import accepted
from tests.support.servers import kafka
from tests.support.servers.kafka_log import make_topics, settings_on

pytestmark = pytest.mark.kafka_cluster


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with kafka.cluster(3) as cluster:
        yield cluster.bootstrap


async def test_missing_topics_are_not_created_by_clients(bootstrap: str) -> None:
    settings = settings_on(bootstrap)
    log = KafkaLog(settings)
    await log.start()  # retries in the background
    try:
        condition = log.condition()
        assert isinstance(condition, Down)
        assert "run `eilpost topics create`" in condition.reason
    finally:
        await log.close()
    findings = await brokers.examine(settings, "", {})
    assert any("run `eilpost topics create`" in finding.advice for finding in findings)
    async with ClusterInfo(make_access(settings)) as cluster_info:
        assert await cluster_info.topics() == {}


async def test_mail_for_unsafe_topics_of_a_dedicated_tenant_is_refused(bootstrap: str) -> None:
    shared = settings_on(bootstrap, replication=3, durability="safe")
    await make_topics(shared)
    unsafe = shared.model_copy(update={"prefix": tenant_prefix(shared.prefix, "acme"), "replication": 1})
    await make_topics(unsafe)
    log = KafkaLog(shared, dedicated=lambda tenant: tenant == "acme")
    await log.start()
    try:
        assert isinstance(log.condition("acme"), Usable)  # before the first recipient
        await log.open_tenant("acme")
        condition = log.condition("acme")  # known before any content is sent
        assert isinstance(condition, Down)
        assert "has 1 replica" in condition.reason
        tenant_message = replace(accepted(1), message=replace(accepted(1).message, tenant="acme"))
        with pytest.raises(LogUnavailable, match=r"acme.*has 1 replica"):
            await log.append(tenant_message)
        assert isinstance(log.condition("acme"), Down)
        await log.append(accepted(2))
        assert isinstance(log.condition(), Usable)
    finally:
        await log.close()


async def test_more_replicas_than_brokers_are_reported_with_their_number(bootstrap: str) -> None:
    line = "log.replication = 5, but only 3 brokers are running: start the others; or set log.replication = 3"
    settings = settings_on(bootstrap, replication=5, durability="safe")
    with pytest.raises(LogUnusable, match=line):
        await make_topics(settings)
    await make_topics(settings.model_copy(update={"replication": 3}))
    with pytest.raises(LogUnusable, match=line):  # nothing to create, but the replication is not as configured
        await make_topics(settings)
    log = KafkaLog(settings)
    with capture_logs() as lines:
        await log.start()  # the existing topics are safe
    await log.close()
    (warning,) = [each for each in lines if each["event"] == "more replicas than brokers, existing topics are used"]
    assert line in warning["error"]
    async with ClusterInfo(make_access(settings)) as cluster_info:
        topic_problems = list(problems(await cluster_info.topics(), settings))
    assert len(topic_problems) == len(ALL_TOPICS)
    assert all("has 3 replicas, but log.replication = 5" in each.text and not each.fatal for each in topic_problems)


async def test_created_topics_are_known_to_every_broker(bootstrap: str) -> None:
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


async def test_doctor_reports_partial_results_after_its_time_limit(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await asyncio.sleep(60)

    settings = settings_on(bootstrap, replication=3)
    await make_topics(settings)
    monkeypatch.setattr(brokers, "append_findings", never)
    findings = await brokers.examine(settings, "", {}, limit_seconds=8.0)
    assert sum(finding.subject.startswith("broker ") for finding in findings) == 3
    assert "some checks did not finish within 8 s" in findings[-1].text
