"""A topic that does not exist yet, added to the data: compacted, with one shard, as `control` and `usage` will be."""

from __future__ import annotations

import sys

import pytest

from mail.log import topics
from mail.log.topics import QUEUE, Partitioning, Place, ShardCounts, Topic
from mail.record import QueueEntry, Record

USAGE = Topic("usage", QueueEntry, compacted=True, partitioning=Partitioning.NONE)


def add_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add USAGE to ALL_TOPICS, and place there what belongs into `queue`, because it has no records of its own."""
    original_topics, original_place = topics.ALL_TOPICS, topics.place

    def place(record: Record, counts: ShardCounts) -> Place:
        topic, shard, key = original_place(record, counts)
        return Place(USAGE, 0, key) if topic is QUEUE else Place(topic, shard, key)

    for name, module in list(sys.modules.items()):
        if name.startswith(("mail.", "eilpost.")):
            if getattr(module, "ALL_TOPICS", None) is original_topics:
                monkeypatch.setattr(module, "ALL_TOPICS", (*original_topics, USAGE))
            if getattr(module, "place", None) is original_place:
                monkeypatch.setattr(module, "place", place)
