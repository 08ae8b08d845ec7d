"""Doctor check for unreadable records and its time limits. Journey 27 runs it on Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import pytest

from eilpost.doctor import unreadable
from eilpost.doctor.finding import Finding, Level
from mail.log import Damaged, LogUnavailable
from mail.log.codec import FrameError, decode, encode
from mail.log.kafka.access import make_access
from mail.log.kafka.decode import decode_queue_entry
from mail.log.kafka.history import KafkaHistoryReader
from mail.log.topics import QUEUE
from mail.record import QueueEntry
from mail.settings import LogSettings
from router.quarantine import NEVER_DUE, corrupt_entry
from tests.support.builders.records import NOON, accepted, frame_of_version, queue_entry

ACCESS = make_access(LogSettings(url="kafka://127.0.0.1:9092"))


@dataclass(frozen=True, slots=True)
class FakeConsumerRecord:
    """A record as returned by a consumer."""

    topic: str
    partition: int
    offset: int
    value: bytes
    key: bytes = b"a-key"


class FakeHistoryReader:
    """Returns `first` or raises it; `queue` has one frame per shard."""

    def __init__(self, first: Sequence[FakeConsumerRecord] | Exception = (), queue: Sequence[bytes] = ()) -> None:
        self._first = first
        self._queue = queue
        self.hangs_at_shard: int | None = None
        self.hangs = False

    async def first_unconsumed(self) -> Sequence[Any]:
        if self.hangs:
            await asyncio.sleep(60)
        if isinstance(self._first, Exception):
            raise self._first
        return self._first

    async def queue_entries_of_shard(self, shard: int) -> AsyncIterator[QueueEntry | Damaged]:
        if shard == self.hangs_at_shard:
            await asyncio.sleep(60)
        frame, key = self._queue[shard], b"a-key"
        with suppress(FrameError):
            key = decode(frame, QueueEntry).delivery.id.encode()
        yield decode_queue_entry(ACCESS, ACCESS.partition(QUEUE, shard), key, frame)


async def look(history_reader: FakeHistoryReader, shards: int = 0) -> list[Finding]:
    return await unreadable.findings(cast("KafkaHistoryReader", history_reader), ACCESS, shards)


async def test_readable_records_give_no_finding() -> None:
    good = encode(accepted()) or b""
    assert (
        await look(
            FakeHistoryReader([FakeConsumerRecord("mail.accepted", 0, 5, good)], [encode(queue_entry()) or b""]), 1
        )
        == []
    )


async def test_a_record_is_named_by_topic_shard_and_offset_with_what_to_do() -> None:
    good, bad = encode(accepted()) or b"", frame_of_version(9, accepted())
    (findings,) = await look(
        FakeHistoryReader(
            [FakeConsumerRecord("mail.accepted", 0, 5, good), FakeConsumerRecord("mail.accepted", 3, 17, bad)]
        )
    )
    assert (findings.level, findings.subject) == (Level.FAIL, "shard 3 of mail.accepted")
    assert findings.text.startswith("the record at mail.accepted, shard 3, offset 17 cannot be read: its version is 9;")
    assert "run that version" in findings.advice[0]


async def test_each_shard_of_the_queue_is_read() -> None:
    bad, good = frame_of_version(9, queue_entry()), encode(queue_entry()) or b""
    findings = await look(FakeHistoryReader(queue=[bad, good, bad]), 3)
    assert [finding.subject for finding in findings] == ["shard 0 of mail.queue", "shard 2 of mail.queue"]
    assert "key a-key cannot be read" in findings[0].text


async def test_findings_before_the_time_limit_are_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unreadable, "_QUEUE_SECONDS", 0.05)
    history_reader = FakeHistoryReader(queue=[frame_of_version(9, queue_entry())])
    history_reader.hangs_at_shard = 1
    assert [finding.subject for finding in await look(history_reader, 2)] == ["shard 0 of mail.queue"]


async def test_unavailable_brokers_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    (findings,) = await look(FakeHistoryReader(LogUnavailable("no leader")))
    assert (findings.level, findings.text) == (Level.FAIL, "cannot be checked: no leader")
    monkeypatch.setattr(unreadable, "_FIRST_SECONDS", 0.05)
    history_reader = FakeHistoryReader()
    history_reader.hangs = True
    (findings,) = await look(history_reader)
    assert (findings.level, findings.subject) == (Level.WARN, "records")


async def test_damaged_records_are_named_with_what_follows() -> None:
    entry = encode(queue_entry()) or b""
    corrupt = corrupt_entry(Damaged("accepted", 0, 1, "", b"x", "no frame"), lambda _: True, NEVER_DUE, NOON)
    findings = await look(
        FakeHistoryReader(
            [FakeConsumerRecord("mail.accepted", 3, 17, (encode(accepted()) or b"")[:-1])],
            [entry[:-1], encode(corrupt) or b""],
        ),
        2,
    )
    subjects = ["shard 3 of mail.accepted", "shard 0 of mail.queue", "quarantine"]
    assert [finding.subject for finding in findings] == subjects
    assert [finding.level for finding in findings] == [Level.FAIL, Level.FAIL, Level.WARN]
    assert "mail.accepted, shard 3, offset 17 is damaged: it should have" in findings[0].text
    assert f"mail.queue, shard 0, key {queue_entry().delivery.id} is damaged" in findings[1].text
    assert findings[2].text == "damaged records in quarantine: 1"
