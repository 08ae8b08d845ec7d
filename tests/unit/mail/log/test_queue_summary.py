"""Totals and oldest deliveries of the queue, compared with those of whole records."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from mail.log.codec import UnknownVersion, decode, encode
from mail.log.queue_summary import Position, QueueSummary, Totals
from mail.record import QueueEntry, state_name
from mail.route import ToMailbox
from tests.support.builders.records import (
    GOLDEN,
    NOON,
    RELAY,
    delivery,
    frame_of_version,
    frame_with_header,
    message,
    queue_entry,
)

FRAMES = Path(__file__).parents[3] / "golden"


def _frame(entry: QueueEntry) -> bytes:
    return encode(entry) or b""


def _entry(number: int, seconds: float) -> QueueEntry:
    received = replace(message(number), received=NOON + timedelta(seconds=seconds))
    return replace(queue_entry(number), delivery=replace(delivery(number), message=received))


@pytest.mark.parametrize("version", ["version-1", "version-2"])
def test_totals_are_those_of_the_whole_records(version: str) -> None:
    frames = [path.read_bytes() for path in sorted((FRAMES / version).glob("queue-entry-*"))]
    assert len(frames) == sum(isinstance(record, QueueEntry) for record in GOLDEN.values())
    for frame in frames:
        entry = decode(frame, QueueEntry)
        message, route = entry.delivery.message, entry.delivery.route
        summary = QueueSummary()
        summary.add(frame)
        totals = Totals(1, len(message.envelope.recipients), message.size_bytes, message.received)
        assert summary.totals_by_site == {(route.site_name, state_name(entry.state)): totals}
        assert summary.total == totals
        assert summary.oldest == [replace(entry, content=None)]


def test_the_oldest_are_listed_and_all_are_counted() -> None:
    ages = [5.0, 1, 9, 3, 7, 1]
    summary = QueueSummary(limit=3)
    for number, seconds in enumerate(ages, 1):
        summary.add(_frame(_entry(number, seconds)))
    assert [entry.delivery.message.queue_id for entry in summary.oldest] == [message(n).queue_id for n in (2, 6, 4)]
    assert summary.total == Totals(6, 6, 6 * message().size_bytes, NOON + timedelta(seconds=1))


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_list_each_entry_once_and_have_the_same_totals(limit: int) -> None:
    entries = [_entry(number, seconds) for number, seconds in enumerate((2.0, 1, 1, 1, 3, 2, 0), 1)]
    listed: list[QueueEntry] = []
    after: Position | None = None
    while len(listed) < len(entries):
        summary = QueueSummary(after=after, limit=limit)
        for entry in entries:
            summary.add(_frame(entry))
        assert (summary.total.deliveries, summary.before) == (len(entries), len(listed))
        assert summary.oldest
        listed += summary.oldest
        after = Position(listed[-1].delivery.message.received, listed[-1].delivery.id)
    assert listed == sorted(entries, key=lambda entry: (entry.delivery.message.received, entry.delivery.id))


def test_entries_of_other_sites_are_only_counted() -> None:
    summary = QueueSummary(site="relay.")
    for entry in (queue_entry(1), replace(queue_entry(2), delivery=delivery(2, ToMailbox("alice@example.test")))):
        summary.add(_frame(entry))
    assert (summary.total.deliveries, summary.not_matching) == (1, 1)
    assert summary.top(0) == [(RELAY.site_name, "active", summary.total)]


@pytest.mark.parametrize("limit", [0, 1])
def test_a_damaged_entry_is_counted_and_in_no_total(limit: int) -> None:
    summary = QueueSummary(limit=limit)
    summary.add(_frame(queue_entry(1)))
    frame = _frame(queue_entry(2))
    damaged = (
        frame[:-1] + b"!",
        frame_with_header(2, b'["queue_entry",["x",[]]]'),
        encode(GOLDEN["accepted-inline"]) or b"",
    )
    for each in damaged:
        summary.add(each)
    assert (summary.total.deliveries, summary.damaged) == (1, len(damaged))
    with pytest.raises(UnknownVersion, match="version is 9"):
        summary.add(frame_of_version(9, queue_entry(2)))
