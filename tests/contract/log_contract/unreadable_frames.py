"""Log contract: a frame of a newer version stops the reader with an error, and stays."""

from __future__ import annotations

import pytest

from mail.log import Log, LogUnusable
from mail.log.queue_summary import QueueSummary
from mail.log.topics import ACCEPTED, ALL_TOPICS, ATTEMPTED, DISPATCHED, EVENTS, QUEUE, Topic, place
from mail.record import Record
from mail.settings import LogSettings
from tests.contract.log_contract.harness import NOW, Harness, delivery_shard_of, events, replay_all, router_shard_of
from tests.support.builders.records import (
    accepted,
    attempted,
    dispatched,
    event,
    frame_of_version,
    queue_entry,
    queue_id,
)

_RECORDS: dict[Topic, Record] = {
    ACCEPTED: accepted(1),
    ATTEMPTED: attempted(1),
    DISPATCHED: dispatched(1),
    EVENTS: event(1),
    QUEUE: queue_entry(1),
}
# The position in the error: for a compacted topic the key, because another record with that key replaces it.
_PLACES = {QUEUE: r"shard 0, key \S+", EVENTS: r"(shard 0, )?(offset \d+|key \S+)"}


async def _read(log: Log, topic: Topic) -> None:
    """Read as the topic's reader in the mail flow does."""
    if topic is EVENTS:
        await events(log, 1)
    elif topic is DISPATCHED:
        async with delivery_shard_of(log) as delivery_shard:
            await delivery_shard.read(10)
    else:
        async with router_shard_of(log) as router:
            await (replay_all(router) if topic is QUEUE else router.read(10, NOW))


class UnreadableFrameTests:
    @pytest.mark.parametrize("topic", ALL_TOPICS, ids=lambda topic: topic.name)
    async def test_a_frame_of_an_unknown_version_stops_the_reader_and_stays(
        self, harness: Harness, topic: Topic
    ) -> None:
        log = await harness.make(LogSettings())
        frame = frame_of_version(9, _RECORDS[topic])
        await harness.append_frame(log, topic, 0, frame, place(_RECORDS[topic], log.counts).key)
        where = _PLACES.get(topic, r"shard 0, offset \d+")
        for _ in range(2):  # the next owner finds it too
            with pytest.raises(LogUnusable, match=rf"{topic.name}, {where}.*version is 9"):
                await _read(log, topic)
        await log.close()

    @pytest.mark.parametrize("number", [None, 1], ids=["all", "of its message"])
    async def test_a_query_reports_a_queue_entry_of_an_unknown_version(
        self, harness: Harness, number: int | None
    ) -> None:
        log = await harness.make(LogSettings())
        await harness.append_frame(
            log, QUEUE, 0, frame_of_version(9, queue_entry(1)), place(queue_entry(1), log.counts).key
        )
        with pytest.raises(LogUnusable, match=r"queue, .*version is 9"):
            _ = [record async for record in log.queue_entries(None if number is None else queue_id(number))]
        with pytest.raises(LogUnusable, match=r"queue, .*version is 9"):
            await log.summarize_queue(QueueSummary())
        await log.close()
