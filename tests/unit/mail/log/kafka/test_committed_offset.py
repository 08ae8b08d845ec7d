"""Committed offsets: out-of-order progress survives a crash and fits into Kafka's offset metadata."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.log.kafka.committed_offset import METADATA_MAX, CommittedOffset, OffsetMetadataError, OffsetTracker


def unfinished(tracker: OffsetTracker, upto: int) -> list[int]:
    return [offset for offset in range(upto) if not tracker.is_finished(offset)]


def test_a_new_tracker_has_nothing_finished() -> None:
    tracker = OffsetTracker()
    assert tracker.to_commit() == CommittedOffset(0, "")
    assert unfinished(tracker, 3) == [0, 1, 2]


def test_the_offset_to_commit_is_the_first_gap() -> None:
    tracker = OffsetTracker()
    for offset in range(5):
        tracker.start(offset)
    for offset in (0, 1, 3):
        tracker.finish(offset)
    assert tracker.offset_to_commit == 2
    assert tracker.to_commit().offset == 2
    assert unfinished(tracker, 6) == [2, 4, 5]


def test_control_records_do_not_hold_back_the_committed_offset() -> None:
    tracker = OffsetTracker()
    tracker.start(0)
    tracker.advance_to(2)  # a transaction marker
    tracker.finish(0)
    assert tracker.to_commit() == CommittedOffset(2, "")


def test_a_repeated_or_unknown_finish_changes_nothing() -> None:
    tracker = OffsetTracker()
    tracker.start(0)
    tracker.finish(0)
    tracker.finish(0)
    tracker.finish(7)
    assert tracker.to_commit() == CommittedOffset(1, "")
    assert not tracker.is_finished(7)


@given(st.data())
def test_a_committed_state_is_restored(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 1 << 60))
    gaps = data.draw(st.lists(st.integers(1, 400), max_size=60))
    offsets, at = [], start
    for gap in gaps:
        offsets.append(at)
        at += gap
    tracker = OffsetTracker(start)
    for offset in offsets:
        tracker.start(offset)
    tracker.advance_to(data.draw(st.integers(at, at + 3)) if offsets else start)
    for offset in data.draw(st.permutations(offsets))[: data.draw(st.integers(0, len(offsets)))]:
        tracker.finish(offset)
    again = OffsetTracker.from_committed(tracker.to_commit())
    assert (again.offset_to_commit, again.position, again.gap_count) == (
        tracker.offset_to_commit,
        tracker.position,
        tracker.gap_count,
    )
    assert [offset for offset in offsets if again.is_finished(offset)] == [
        offset for offset in offsets if tracker.is_finished(offset)
    ]
    assert again.to_commit() == tracker.to_commit()


def test_the_next_owner_continues_with_gaps_and_later_offsets() -> None:
    tracker = OffsetTracker()
    for offset in range(10):
        tracker.start(offset)
    for offset in (7, 0, 4, 9):
        tracker.finish(offset)
    again = OffsetTracker.from_committed(tracker.to_commit())
    unfinished_offsets = [offset for offset in range(again.offset_to_commit, 12) if not again.is_finished(offset)]
    assert unfinished_offsets == [1, 2, 3, 5, 6, 8, 10, 11]
    for offset in unfinished_offsets:
        again.start(offset)
    for offset in unfinished_offsets:
        again.finish(offset)
    assert again.to_commit() == CommittedOffset(12, "")


def test_five_thousand_contiguous_gaps_fit() -> None:
    tracker = OffsetTracker(1 << 40)
    for offset in range(1 << 40, (1 << 40) + 200_000):
        tracker.start(offset)
        if offset % 40:
            tracker.finish(offset)
    committed = tracker.to_commit()
    assert len(committed.metadata) <= METADATA_MAX
    assert OffsetTracker.from_committed(committed).position == tracker.position


def test_too_many_random_gaps_forget_only_the_newest_finished_offsets() -> None:
    chance = random.Random(1)
    tracker, at = OffsetTracker(), 0
    for _ in range(6000):
        at += chance.randrange(1, 5000)
        tracker.start(at)
    assert tracker.is_full
    committed = tracker.to_commit()
    assert len(committed.metadata) <= METADATA_MAX
    again = OffsetTracker.from_committed(committed)
    assert again.offset_to_commit == tracker.offset_to_commit
    assert again.position < tracker.position
    assert not again.is_finished(at)
    assert all(tracker.is_finished(offset) for offset in range(again.position) if again.is_finished(offset))


@pytest.mark.parametrize("text", ["2AAAA", "1", "1!!", "1AAAA", "bitmap"])
def test_unknown_metadata_is_refused_and_only_a_newer_version_has_advice(text: str) -> None:
    with pytest.raises(OffsetMetadataError) as caught:
        OffsetTracker.from_committed(CommittedOffset(0, text))
    assert ("run that version" in str(caught.value)) == (text == "2AAAA")


def test_an_offset_without_metadata_has_no_gaps() -> None:
    assert OffsetTracker.from_committed(CommittedOffset(5, "")).to_commit() == CommittedOffset(5, "")
