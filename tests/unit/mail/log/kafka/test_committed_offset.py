"""Marks: what is finished out of order is known again after any crash, and fits into what Kafka keeps."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.log.kafka.committed_offset import METADATA_MAX, CommittedOffset, OffsetMetadataError, OffsetTracker


def unfinished(marks: OffsetTracker, upto: int) -> list[int]:
    return [offset for offset in range(upto) if not marks.is_finished(offset)]


def test_nothing_taken_is_nothing_finished() -> None:
    marks = OffsetTracker()
    assert marks.to_commit() == CommittedOffset(0, "")
    assert unfinished(marks, 3) == [0, 1, 2]


def test_the_low_water_mark_is_the_first_hole() -> None:
    marks = OffsetTracker()
    for offset in range(5):
        marks.start(offset)
    for offset in (0, 1, 3):
        marks.finish(offset)
    assert marks.low_water_mark == 2
    assert marks.to_commit().offset == 2
    assert unfinished(marks, 6) == [2, 4, 5]


def test_what_the_broker_keeps_for_itself_is_passed_over() -> None:
    marks = OffsetTracker()
    marks.start(0)
    marks.advance_to(2)  # a transaction's marker
    marks.finish(0)
    assert marks.to_commit() == CommittedOffset(2, "")


def test_a_finish_twice_or_of_what_was_never_taken_changes_nothing() -> None:
    marks = OffsetTracker()
    marks.start(0)
    marks.finish(0)
    marks.finish(0)
    marks.finish(7)
    assert marks.to_commit() == CommittedOffset(1, "")
    assert not marks.is_finished(7)


@given(st.data())
def test_what_was_committed_is_what_is_read(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 1 << 60))
    gaps = data.draw(st.lists(st.integers(1, 400), max_size=60))
    offsets, at = [], start
    for gap in gaps:
        offsets.append(at)
        at += gap
    marks = OffsetTracker(start)
    for offset in offsets:
        marks.start(offset)
    marks.advance_to(data.draw(st.integers(at, at + 3)) if offsets else start)
    for offset in data.draw(st.permutations(offsets))[: data.draw(st.integers(0, len(offsets)))]:
        marks.finish(offset)
    again = OffsetTracker.from_committed(marks.to_commit())
    assert (again.low_water_mark, again.position, again.gap_count) == (
        marks.low_water_mark,
        marks.position,
        marks.gap_count,
    )
    assert [offset for offset in offsets if again.is_finished(offset)] == [
        offset for offset in offsets if marks.is_finished(offset)
    ]
    assert again.to_commit() == marks.to_commit()


def test_a_next_owner_takes_holes_and_what_follows() -> None:
    marks = OffsetTracker()
    for offset in range(10):
        marks.start(offset)
    for offset in (7, 0, 4, 9):
        marks.finish(offset)
    again = OffsetTracker.from_committed(marks.to_commit())
    taken = [offset for offset in range(again.low_water_mark, 12) if not again.is_finished(offset)]
    assert taken == [1, 2, 3, 5, 6, 8, 10, 11]
    for offset in taken:
        again.start(offset)
    for offset in taken:
        again.finish(offset)
    assert again.to_commit() == CommittedOffset(12, "")


def test_five_thousand_in_flight_fit_when_they_lie_together() -> None:
    marks = OffsetTracker(1 << 40)
    for offset in range(1 << 40, (1 << 40) + 200_000):
        marks.start(offset)
        if offset % 40:
            marks.finish(offset)
    mark = marks.to_commit()
    assert len(mark.metadata) <= METADATA_MAX
    assert OffsetTracker.from_committed(mark).position == marks.position


def test_holes_without_order_that_do_not_fit_are_many_and_lose_only_the_newest() -> None:
    chance = random.Random(1)
    marks, at = OffsetTracker(), 0
    for _ in range(6000):
        at += chance.randrange(1, 5000)
        marks.start(at)
    assert marks.is_full
    mark = marks.to_commit()
    assert len(mark.metadata) <= METADATA_MAX
    again = OffsetTracker.from_committed(mark)
    assert again.low_water_mark == marks.low_water_mark
    assert again.position < marks.position
    assert not again.is_finished(at)
    assert all(marks.is_finished(offset) for offset in range(again.position) if again.is_finished(offset))


@pytest.mark.parametrize("text", ["2AAAA", "1", "1!!", "1AAAA", "bitmap"])
def test_what_is_not_ours_is_refused(text: str) -> None:
    with pytest.raises(OffsetMetadataError):
        OffsetTracker.from_committed(CommittedOffset(0, text))


def test_a_mark_without_text_is_a_plain_offset() -> None:
    assert OffsetTracker.from_committed(CommittedOffset(5, "")).to_commit() == CommittedOffset(5, "")
