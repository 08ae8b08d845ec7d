"""A topic is data: one more entry of `ALL_TOPICS`, and a `place` for its records, and every adapter has it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.admin import NewTopic

from mail.log import LogNotReady
from mail.log.codec import decode
from mail.log.embedded.store import Store
from mail.log.kafka.access import make_access
from mail.log.kafka.create_topics import create_missing
from mail.log.kafka.topics import TopicState, problems, shard_counts_of, topic_config
from mail.log.memory import MemoryLog
from mail.log.topics import ALL_TOPICS
from mail.record import QueueEntry, QueueTombstone
from mail.settings import LogSettings
from tests.support.added_topic import USAGE, add_topic
from tests.support.builders.records import queue_entry
from tests.support.servers.embedded_log import running

SETTINGS = LogSettings(shards=3, delivery_shards=5)
ON_KAFKA = SETTINGS.model_copy(update={"url": "kafka://k.test:9092", "replication": 1})
RECORDS = (queue_entry(1), queue_entry(2), queue_entry(2, attempts=1), QueueTombstone(queue_entry(1).delivery.id))
LAST_OF_EACH_KEY = [queue_entry(2, attempts=1)]


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    add_topic(monkeypatch)


async def test_the_memory_log_keeps_the_last_record_of_each_key() -> None:
    log = MemoryLog(SETTINGS)
    for record in RECORDS:
        await log.append(record)
    assert log.read_compacted(USAGE, 0) == LAST_OF_EACH_KEY
    assert [entry async for entry in log.queue_entries()] == []


async def test_the_embedded_log_keeps_the_last_record_of_each_key(tmp_path: Path) -> None:
    async with running(tmp_path / "log.db", SETTINGS) as log:
        for record in RECORDS:
            await log.append(record)
    async with running(tmp_path / "log.db", SETTINGS) as log:
        rows = await log.writer.query(partial(Store.compacted, topic=USAGE, shard=0, after="", limit=10))
        assert [decode(frame, QueueEntry) for _, frame in rows] == LAST_OF_EACH_KEY
        assert [entry async for entry in log.queue_entries()] == []


class _Admin:
    """A broker's answers to `create_missing`. It has the topics that existed before."""

    def __init__(self) -> None:
        self.created: list[NewTopic] = []

    async def describe_cluster(self) -> dict[str, Any]:
        return {"brokers": [{"node_id": 1}]}

    async def _send_request(self, request: Any, _broker: int | None) -> Any:
        partitions = {f"mail.{topic.name}": 5 if topic.name == "dispatched" else 3 for topic in ALL_TOPICS}
        partitions |= {topic.name: topic.num_partitions for topic in self.created}
        replicas = {"replicas": [1], "isr": [1]}
        answer = [
            {
                "topic": name,
                "error_code": 0 if name in partitions else 3,
                "partitions": [replicas] * partitions.get(name, 0),
            }
            for name in request._topics
        ]
        return SimpleNamespace(to_object=lambda: {"topics": answer})

    async def create_topics(self, new: list[NewTopic]) -> Any:
        self.created += new
        return SimpleNamespace(topic_errors=[(topic.name, 0, "") for topic in new])


async def test_it_is_created_on_kafka() -> None:
    admin = _Admin()
    actions = await create_missing(admin, make_access(ON_KAFKA), ON_KAFKA)
    assert actions == ["mail.usage: created, partitions: 1, replicas: 1"]
    assert admin.created[0].topic_configs["cleanup.policy"] == "compact"


def test_it_is_required_and_checked_on_kafka() -> None:
    access = make_access(ON_KAFKA)
    states = {
        topic: TopicState(
            access.topic(topic), 5 if topic.name == "dispatched" else 3, 3, 3, topic_config(topic, SETTINGS)
        )
        for topic in ALL_TOPICS
    }
    with pytest.raises(LogNotReady, match=r"topic mail\.usage is missing"):
        shard_counts_of(states, access, SETTINGS)
    states[USAGE] = TopicState(
        access.topic(USAGE), 1, 3, 3, {**topic_config(USAGE, SETTINGS), "cleanup.policy": "delete"}
    )
    counts = shard_counts_of(states, access, SETTINGS)
    assert (counts.by_queue_id, counts.of_dispatched, counts.of(USAGE)) == (3, 5, 1)
    assert [problem.text for problem in problems(states, SETTINGS)] == [
        "cleanup.policy = delete removes queue entries: set it to compact"
    ]
