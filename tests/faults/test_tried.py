"""What bounds the duplicates of a cell is held to account itself: a ledger of deliveries, written and read."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.tried import Ledger, Tried, Unmarked


def test_what_is_at_work_and_what_is_never_marked(tmp_path: Path) -> None:
    ledger, tried = Ledger(tmp_path / "tried"), Tried(tmp_path / "tried")
    shard, other = object(), object()
    early, reported, late = ledger.begin(), ledger.begin(), ledger.begin()
    ledger.finish(early, shard)
    ledger.marked(ledger.marks([shard], [shard, other]))
    ledger.end(early)
    ledger.finish(reported, other)  # and its shard is lost before the mark
    ledger.end(reported)
    began = time.monotonic()
    since, given_up = ledger.begin(), ledger.begin()
    ledger.end(given_up)  # for the shard's next owner
    for number in (late, since):
        ledger.finish(number, shard)
        ledger.end(number)
    assert ledger.marks([shard], [shard]) == [late, since]
    ledger.marked([late])
    assert tried.unmarked(began, time.monotonic()) == Unmarked(at_once=2, in_all=3)  # reported, since, given up
    later = time.monotonic()
    ledger.marked([since])
    assert tried.unmarked(later, time.monotonic()) == Unmarked(at_once=1, in_all=0)
    assert tried.unmarked(time.monotonic(), time.monotonic()) == Unmarked(0, 0)


def test_who_was_killed_marks_nothing_more(tmp_path: Path) -> None:
    first, tried = Ledger(tmp_path / "tried"), Tried(tmp_path / "tried")
    number = first.begin()
    began = time.monotonic()
    second = Ledger(tmp_path / "tried")
    assert second.begin() == number  # and is another
    second.finish(number, first)
    second.marked(second.marks([first], [first]))
    now = time.monotonic()
    assert tried.unmarked(began, now) == Unmarked(at_once=1, in_all=1)
    assert tried.unmarked(now, time.monotonic()) == Unmarked(0, 0)
