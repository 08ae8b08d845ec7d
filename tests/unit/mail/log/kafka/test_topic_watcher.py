"""A process puts its shards down when its topics are certainly gone, and takes them up when they are back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from mail.log import LogUnavailable
from mail.log.kafka import topic_watcher
from mail.log.kafka.access import make_access
from mail.log.kafka.topic_watcher import TopicWatcher
from mail.log.kafka.topics import TopicState
from mail.log.topics import ALL_TOPICS, DISPATCHED, Topic
from mail.settings import LogSettings
from tests.support.servers.ports import wait_until

SETTINGS = LogSettings(url="kafka://127.0.0.1:1", durability="dev")


def topics(shards: int, delivery_shards: int) -> Mapping[Topic, TopicState]:
    return {
        topic: TopicState(f"mail.{topic.name}", delivery_shards if topic is DISPATCHED else shards, 3, 3, {})
        for topic in ALL_TOPICS
    }


class FakeCluster:
    """What the brokers say next, the last of it again and again; and what was done."""

    def __init__(self, *answers: Mapping[Topic, TopicState] | Exception) -> None:
        self.answers = list(answers)
        self.done: list[str] = []
        self.back_fails = False
        self.watcher = TopicWatcher(
            self,  # type: ignore[arg-type]
            make_access(SETTINGS),
            SETTINGS,
            on_missing=lambda: self.done.append("gone"),
            on_restored=self.back,
            on_grown=lambda: self.done.append("grown"),
        )

    async def back(self) -> None:
        if self.back_fails:
            raise LogUnavailable("not yet")
        self.done.append("back")

    async def topics(self, *_: Any, **__: Any) -> Mapping[Topic, TopicState]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_watcher, "_MISSING_SECONDS", 0.0)


async def world(*answers: Mapping[Topic, TopicState] | Exception) -> FakeCluster:
    made = FakeCluster(topics(12, 24))
    await made.watcher.load()
    made.answers = list(answers)
    return made


async def test_what_one_broker_says_for_a_while_puts_nothing_down() -> None:
    """It has slept, and knows of fewer partitions, or of no topics yet."""
    made = await world(topics(12, 12), {}, topics(6, 24), topics(12, 24))
    await made.watcher._check()
    assert made.done == []
    assert made.watcher.problem is None


async def test_dispatched_may_grow() -> None:
    made = await world(topics(12, 48))
    await made.watcher._check()
    await made.watcher._check()
    assert made.done == ["grown"]
    assert made.watcher.counts.by_site == 48


async def test_other_topics_are_begun_anew() -> None:
    made = await world(topics(6, 24))
    await made.watcher._check()
    assert made.done == ["gone", "back"]
    assert made.watcher.problem is None


async def test_what_was_put_down_is_taken_up_however_often_that_fails() -> None:
    """And the process is not ready until then."""
    made = await world(topics(6, 24))
    made.back_fails = True
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            await made.watcher._check()
        assert made.done == ["gone"]
        assert made.watcher.problem is not None
    made.back_fails, made.answers = False, [topics(12, 24)]
    await made.watcher._check()
    assert made.done == ["gone", "back"]
    assert made.watcher.problem is None


async def test_a_partition_below_min_insync_replicas_is_an_outage_until_it_is_in_sync_again() -> None:
    whole = {topic: replace(each, config={"min.insync.replicas": "2"}) for topic, each in topics(12, 24).items()}
    made = FakeCluster(whole)
    await made.watcher.load()
    assert made.watcher.outage is None
    made.answers = [{topic: replace(each, in_sync=1, config={}) for topic, each in whole.items()}, whole]
    await made.watcher._check()
    assert made.watcher.outage is not None
    assert "topic mail.accepted: a partition has 1 replicas in sync and needs 2" in made.watcher.outage
    await made.watcher._check()
    assert made.watcher.outage is None
    assert made.done == []  # an outage puts nothing down


async def test_looks_without_an_answer_are_an_outage_when_two_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_watcher, "POLL_SECONDS", 0.0)
    made = await world(LogUnavailable("gone"), LogUnavailable("gone"), topics(12, 24))
    seen = []
    topics_of = made.topics

    async def topics_seen(*arguments: Any, **more: Any) -> Mapping[Topic, TopicState]:
        seen.append(made.watcher.outage)
        return await topics_of(*arguments, **more)

    monkeypatch.setattr(made, "topics", topics_seen)
    watching = asyncio.create_task(made.watcher.watch())
    await wait_until(lambda: len(seen) >= 4)
    watching.cancel()
    assert seen[:4] == [None, None, "gone", None]
