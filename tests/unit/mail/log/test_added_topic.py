"""A topic is data: one more value in the list of a log's topics, and every adapter has it."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.admin import NewTopic

from mail.log import LogNotReady
from mail.log.embedded import EmbeddedLog
from mail.log.embedded.check import check_page
from mail.log.embedded.commit import Change, compacted_key
from mail.log.kafka.access import make_access
from mail.log.kafka.create_topics import create_missing
from mail.log.kafka.topics import TopicState, problems, shard_counts_of, topic_config
from mail.log.memory import MemoryLog
from mail.log.topics import ALL_TOPICS, QUEUE, Place
from mail.settings import LogSettings
from tests.support.added_topic import USAGE, WITH_USAGE, Usage, UsageTombstone

SETTINGS = LogSettings(shards=3, delivery_shards=5)
ON_KAFKA = SETTINGS.model_copy(update={"url": "kafka://k.test:9092", "replication": 1})
RECORDS = (Usage("a", 1), Usage("b", 1), Usage("b", 2), UsageTombstone("a"))


@pytest.mark.parametrize("adapter", ["memory", "embedded"])
async def test_it_is_written_kept_by_key_and_followed(adapter: str, tmp_path: Path) -> None:
    def new_log() -> MemoryLog | EmbeddedLog:
        return EmbeddedLog(tmp_path / "log.db", SETTINGS, WITH_USAGE)

    log = MemoryLog(SETTINGS, WITH_USAGE) if adapter == "memory" else new_log()
    await log.start()
    async with aclosing(log.follow(USAGE)) as changes:
        assert list(await anext(changes)) == []
        for record in RECORDS:
            await log.append(record)
            assert list(await anext(changes)) == [record]
    await log.close()
    log = log if adapter == "memory" else new_log()
    await log.start()
    async with aclosing(log.follow(USAGE)) as changes:
        assert list(await anext(changes)) == [Usage("b", 2)]
    assert [entry async for entry in log.queue_entries()] == []
    await log.close()


async def test_damage_in_it_is_found_by_the_check_of_the_embedded_log(tmp_path: Path) -> None:
    log = EmbeddedLog(tmp_path / "log.db", SETTINGS, WITH_USAGE)
    await log.start()
    await log.append(Usage("a", 1))
    damaged = Change(compacted={compacted_key(USAGE, 0, "b"): b"no frame", compacted_key(QUEUE, 2, "c"): b"no frame"})
    await log.writer.change(damaged)
    page, _ = await log.writer.query(partial(check_page, cursor="pending ", topics=WITH_USAGE))
    await log.close()
    assert [topic for topic, _ in page.damaged] == ["queue", "usage"]
    assert [text.partition(": ")[0] for _, text in page.damaged] == ["queue, shard 2, key c", "usage, shard 0, key b"]


def test_it_is_placed_by_its_own_functions() -> None:
    counts = MemoryLog(SETTINGS, WITH_USAGE).counts
    assert {WITH_USAGE.place(record, counts) for record in RECORDS} == {Place(USAGE, 0, "a"), Place(USAGE, 0, "b")}


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
    actions = await create_missing(admin, make_access(ON_KAFKA, topics=WITH_USAGE), ON_KAFKA)
    assert actions == ["mail.usage: created, partitions: 1, replicas: 1"]
    assert admin.created[0].topic_configs["cleanup.policy"] == "compact"


def test_it_is_required_and_checked_on_kafka() -> None:
    access = make_access(ON_KAFKA, topics=WITH_USAGE)
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
