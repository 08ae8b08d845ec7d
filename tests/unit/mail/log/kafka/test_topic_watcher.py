"""Topic watcher: shards are suspended when topics are missing for certain, and resumed when they are back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from mail.log import LogUnavailable
from mail.log.kafka.access import make_access
from mail.log.kafka.topic_watcher import TopicWatcher
from mail.log.kafka.topics import TopicState
from mail.log.topics import ALL_TOPICS, DISPATCHED, Topic
from mail.settings import LogSettings
from tests.support.kafka_timeouts import set_timeouts
from tests.support.servers.ports import wait_until

SETTINGS = LogSettings(url="kafka://127.0.0.1:1", durability="dev")


def topics(shards: int, delivery_shards: int) -> Mapping[Topic, TopicState]:
    return {
        topic: TopicState(f"mail.{topic.name}", delivery_shards if topic is DISPATCHED else shards, 3, 3, {})
        for topic in ALL_TOPICS
    }


class FakeCluster:
    """Brokers that give these answers in turn, repeating the last; records the callbacks."""

    def __init__(self, *answers: Mapping[Topic, TopicState] | Exception) -> None:
        self.answers = list(answers)
        self.callbacks: list[str] = []
        self.on_restored_fails = False
        self.watcher = TopicWatcher(
            self,  # type: ignore[arg-type]
            make_access(SETTINGS),
            SETTINGS,
            on_missing=lambda: self.callbacks.append("missing"),
            on_restored=self.restore,
            on_grown=lambda: self.callbacks.append("grown"),
        )

    async def restore(self) -> None:
        if self.on_restored_fails:
            raise LogUnavailable("not yet")
        self.callbacks.append("restored")

    async def topics(self, *_: Any, **__: Any) -> Mapping[Topic, TopicState]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, topics_missing_seconds=0.0)


async def watched(*answers: Mapping[Topic, TopicState] | Exception) -> FakeCluster:
    cluster = FakeCluster(topics(12, 24))
    await cluster.watcher.load()
    cluster.answers = list(answers)
    return cluster


async def test_temporary_old_metadata_suspends_nothing() -> None:
    """The broker was paused, and knows fewer partitions or no topics yet."""
    cluster = await watched(topics(12, 12), {}, topics(6, 24), topics(12, 24))
    await cluster.watcher.check()
    assert cluster.callbacks == []
    assert cluster.watcher.problem is None


async def test_dispatched_may_grow() -> None:
    cluster = await watched(topics(12, 48))
    await cluster.watcher.check()
    await cluster.watcher.check()
    assert cluster.callbacks == ["grown"]
    assert cluster.watcher.counts.of_dispatched == 48


async def test_recreated_topics_restart_the_shards() -> None:
    cluster = await watched(topics(6, 24))
    await cluster.watcher.check()
    assert cluster.callbacks == ["missing", "restored"]
    assert cluster.watcher.problem is None


async def test_resuming_is_retried_until_it_succeeds() -> None:
    """The process stays unready until then."""
    cluster = await watched(topics(6, 24))
    cluster.on_restored_fails = True
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            await cluster.watcher.check()
        assert cluster.callbacks == ["missing"]
        assert cluster.watcher.problem is not None
    cluster.on_restored_fails, cluster.answers = False, [topics(12, 24)]
    await cluster.watcher.check()
    assert cluster.callbacks == ["missing", "restored"]
    assert cluster.watcher.problem is None


async def test_a_partition_below_min_insync_replicas_is_an_outage() -> None:
    whole = {topic: replace(state, config={"min.insync.replicas": "2"}) for topic, state in topics(12, 24).items()}
    cluster = FakeCluster(whole)
    await cluster.watcher.load()
    assert cluster.watcher.outage is None
    cluster.answers = [{topic: replace(state, in_sync=1, config={}) for topic, state in whole.items()}, whole]
    await cluster.watcher.check()
    assert cluster.watcher.outage is not None
    assert "topic mail.accepted: a partition has 1 replicas in sync and needs 2" in cluster.watcher.outage
    await cluster.watcher.check()
    assert cluster.watcher.outage is None
    assert cluster.callbacks == []  # an outage suspends nothing


async def test_two_unanswered_checks_are_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, watch_seconds=0.0)
    cluster = await watched(LogUnavailable("missing"), LogUnavailable("missing"), topics(12, 24))
    outages = []
    topics_of = cluster.topics

    async def topics_seen(*arguments: Any, **more: Any) -> Mapping[Topic, TopicState]:
        outages.append(cluster.watcher.outage)
        return await topics_of(*arguments, **more)

    monkeypatch.setattr(cluster, "topics", topics_seen)
    watching = asyncio.create_task(cluster.watcher.watch())
    await wait_until(lambda: len(outages) >= 4)
    watching.cancel()
    assert outages[:4] == [None, None, "missing", None]
