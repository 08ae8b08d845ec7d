"""Log contract: a damaged record is returned with its bytes, consumed like any other, and stops nothing."""

from __future__ import annotations

import pytest

from mail.log import Damaged
from mail.log.codec import encode
from mail.log.queue_summary import QueueSummary
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, EVENTS, QUEUE, Topic, place
from mail.record import Record
from mail.settings import LogSettings
from tests.contract.log_contract.harness import (
    NOW,
    Harness,
    delivery_shard_of,
    events,
    read_dispatches,
    read_inputs,
    replay_all,
    router_shard_of,
)
from tests.support.builders.records import accepted, attempted, dispatched, event, queue_entry, queue_id

_RECORDS: dict[Topic, Record] = {
    ACCEPTED: accepted(1),
    ATTEMPTED: attempted(1),
    DISPATCHED: dispatched(1),
    EVENTS: event(1),
    QUEUE: queue_entry(1),
}


def overwritten(record: Record, start: int = 100) -> bytes:
    """The frame of a record with 12 bytes overwritten."""
    frame = encode(record) or b""
    return frame[:start] + bytes(12) + frame[start + 12 :]


def damaged_frames(topic: Topic) -> dict[str, bytes]:
    frame = encode(_RECORDS[topic]) or b""
    return {
        "12 bytes overwritten": overwritten(_RECORDS[topic]),
        "its id overwritten": overwritten(_RECORDS[topic], 32),
        "bad magic": b"\0\0" + frame[2:],
        "truncated": frame[:-1],
        "a part of the prefix": frame[:7],
        "version and body overwritten": frame[:2] + bytes(range(200, 212)) + frame[14:],
        "another kind": encode(_RECORDS[ACCEPTED if topic is EVENTS else EVENTS]) or b"",
    }


DAMAGE = list(damaged_frames(ACCEPTED))


class DamagedRecordTests:
    @pytest.mark.parametrize("damage", DAMAGE)
    @pytest.mark.parametrize("topic", [ACCEPTED, ATTEMPTED], ids=lambda topic: topic.name)
    async def test_a_damaged_input_is_returned_with_its_bytes_and_is_consumed(
        self, harness: Harness, topic: Topic, damage: str
    ) -> None:
        log = await harness.make(LogSettings())
        frame = damaged_frames(topic)[damage]
        await harness.append_frame(log, topic, 0, frame, place(_RECORDS[topic], log.counts).key)
        after = accepted(2)
        await log.append(after)
        assert await log.oldest_unconsumed() is not None
        assert await log.unrouted_messages(queue_id(1)) == []
        async with router_shard_of(log) as router:
            inputs = await read_inputs(router, 2)
            (damaged,) = [entry.record for entry in inputs if isinstance(entry.record, Damaged)]
            assert (damaged.topic, damaged.shard, damaged.frame) == (topic.name, 0, frame)
            assert damaged.reason
            assert damaged.position.startswith(f"{topic.name}, shard 0, offset ")
            assert [entry.record for entry in inputs if not isinstance(entry.record, Damaged)] == [after]
            await router.rewind()
            assert len(await read_inputs(router, 2)) == 2
            await router.commit([queue_entry(2)], inputs)
        async with router_shard_of(log) as router:
            await replay_all(router)
            assert list(await router.read(10, NOW)) == []
        await log.close()

    async def test_the_key_of_a_damaged_report_is_found_in_the_record_or_beside_it(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        report = attempted(1)
        await harness.append_frame(log, ATTEMPTED, 0, overwritten(report), place(report, log.counts).key)
        async with router_shard_of(log) as router:
            (entry,) = await read_inputs(router, 1)
            assert isinstance(entry.record, Damaged)
            assert entry.record.key == report.delivery_id
            lost = await router.lost_deliveries([report.delivery_id, attempted(2).delivery_id], [entry])
            assert report.delivery_id in lost
        await log.close()

    async def test_a_damaged_queue_entry_is_replayed_until_its_key_is_written(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        entry, other = queue_entry(1), queue_entry(2)
        await log.append(other)
        await harness.append_frame(log, QUEUE, 0, overwritten(entry), place(entry, log.counts).key)
        assert [record async for record in log.queue_entries()] == [other]
        summary = QueueSummary()
        await log.summarize_queue(summary)
        assert (summary.damaged, summary.total.deliveries) == (1, 1)
        async with router_shard_of(log) as router:
            for _ in range(2):
                replayed = await replay_all(router)
                (damaged,) = [record for record in replayed if isinstance(record, Damaged)]
                assert (damaged.topic, damaged.key, damaged.frame) == (
                    QUEUE.name,
                    entry.delivery.id,
                    overwritten(entry),
                )
                assert [record for record in replayed if not isinstance(record, Damaged)] == [other]
            await router.commit([entry], [])
            assert len(await replay_all(router)) == 2
            assert not [record for record in await replay_all(router) if isinstance(record, Damaged)]
        await log.close()

    @pytest.mark.parametrize("is_frame_intact", [False, True])
    @pytest.mark.parametrize("raw_key", [b"key", b"\xff\xfe-1", queue_id(1).encode()[:-1] + b"\xff-1"])
    async def test_a_damaged_key_is_replayed_until_it_is_removed(
        self, harness: Harness, raw_key: bytes, is_frame_intact: bool
    ) -> None:
        log = await harness.make(LogSettings())
        entry, other = queue_entry(1), queue_entry(2)
        await log.append(other)
        frame = (encode(entry) or b"") if is_frame_intact else overwritten(entry)
        await harness.append_frame(log, QUEUE, 0, frame, raw_key.decode("utf-8", "surrogateescape"))
        async with router_shard_of(log) as router:
            for _ in range(2):
                (damaged,) = [record for record in await replay_all(router) if isinstance(record, Damaged)]
                assert (damaged.raw_key, damaged.frame, damaged.is_key_damaged) == (raw_key, frame, True)
                assert (damaged.key, damaged.previous) == (entry.delivery.id, entry if is_frame_intact else None)
            await router.commit([entry], [])
            await router.remove_keys([raw_key])
            assert sorted(await replay_all(router), key=repr) == sorted([entry, other], key=repr)
        summary = QueueSummary()
        await log.summarize_queue(summary)
        assert (summary.damaged, summary.total.deliveries) == (0, 2)
        await log.close()

    async def test_the_dispatches_of_deliveries_are_found(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        for number in (1, 2):
            await log.append(dispatched(number))
        async with router_shard_of(log) as router:
            first, second, third = (dispatched(number).delivery.id for number in (1, 2, 3))
            found = await router.find_dispatches([first, second, third])
            assert (found[first].dispatched, found[second].dispatched) == (dispatched(1), dispatched(2))
            assert found[third] == (None, False)
            assert await router.find_dispatches([]) == {}
        await log.close()

    async def test_a_router_shard_reads_the_history_of_a_message(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        await log.append(event(1))
        async with router_shard_of(log) as router:
            assert [each async for each in router.history(queue_id(1))] == [event(1)]
        await log.close()

    async def test_a_damaged_dispatch_is_passed_to_the_router(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        record = dispatched(1)
        await harness.append_frame(log, DISPATCHED, 0, overwritten(record), place(record, log.counts).key)
        await log.append(dispatched(2))
        async with delivery_shard_of(log) as delivery:
            first, second = await read_dispatches(delivery, 2)
            assert isinstance(first.record, Damaged)
            assert first.record.frame == overwritten(record)
            assert second.record == dispatched(2)
            await delivery.finish(second, attempted(2))
            await delivery.finish(first, first.record)
        async with delivery_shard_of(log) as delivery:
            assert list(await delivery.read(10, NOW)) == []
        async with router_shard_of(log) as router:
            inputs = {entry.record for entry in await read_inputs(router, 2)}
            assert attempted(2) in inputs
            (damaged,) = [record for record in inputs if isinstance(record, Damaged)]
            assert (damaged.topic, damaged.key, damaged.frame) == (
                ATTEMPTED.name,
                record.delivery.id,
                overwritten(record),
            )
        await log.close()

    async def test_a_damaged_event_is_returned_among_the_others(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        await harness.append_frame(log, EVENTS, 0, overwritten(event(1)), place(event(1), log.counts).key)
        (damaged,) = await events(log, 1)
        assert isinstance(damaged, Damaged)
        assert damaged.frame == overwritten(event(1))
        await log.close()
