"""What bounds the duplicates of a cell is held to account itself: a ledger of deliveries, written and read."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.faults.attempt_ledger import AttemptLedger, AttemptLedgerReader, Uncommitted


def test_what_is_at_work_and_what_is_never_marked(tmp_path: Path) -> None:
    ledger, tried = AttemptLedger(tmp_path / "tried"), AttemptLedgerReader(tmp_path / "tried")
    shard, other = object(), object()
    early, reported, late = ledger.begin(), ledger.begin(), ledger.begin()
    ledger.finish(early, shard)
    ledger.committed(ledger.select_committed([shard], [shard, other]))
    ledger.end(early)
    ledger.finish(reported, other)  # and its shard is lost before the mark
    ledger.end(reported)
    began = time.monotonic()
    since, given_up = ledger.begin(), ledger.begin()
    ledger.end(given_up)  # for the shard's next owner
    for number in (late, since):
        ledger.finish(number, shard)
        ledger.end(number)
    assert ledger.select_committed([shard], [shard]) == [late, since]
    ledger.committed([late])
    assert tried.uncommitted(began, time.monotonic()) == Uncommitted(at_once=2, in_all=3)  # reported, since, given up
    later = time.monotonic()
    ledger.committed([since])
    assert tried.uncommitted(later, time.monotonic()) == Uncommitted(at_once=1, in_all=0)
    assert tried.uncommitted(time.monotonic(), time.monotonic()) == Uncommitted(0, 0)


def test_who_was_killed_marks_nothing_more(tmp_path: Path) -> None:
    first, tried = AttemptLedger(tmp_path / "tried"), AttemptLedgerReader(tmp_path / "tried")
    number = first.begin()
    began = time.monotonic()
    second = AttemptLedger(tmp_path / "tried")
    assert second.begin() == number  # and is another
    second.finish(number, first)
    second.committed(second.select_committed([first], [first]))
    now = time.monotonic()
    assert tried.uncommitted(began, now) == Uncommitted(at_once=1, in_all=1)
    assert tried.uncommitted(now, time.monotonic()) == Uncommitted(0, 0)
