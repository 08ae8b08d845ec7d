"""The attempt ledger, which bounds the duplicates of a fault case."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.faults.attempt_ledger import AttemptLedger, AttemptLedgerReader, Uncommitted


def test_uncommitted_counts_open_deliveries_and_never_committed_ones(tmp_path: Path) -> None:
    ledger, reader = AttemptLedger(tmp_path / "attempts"), AttemptLedgerReader(tmp_path / "attempts")
    shard, other = object(), object()
    early, reported, late = ledger.begin(), ledger.begin(), ledger.begin()
    ledger.finish(early, shard)
    ledger.committed(ledger.select_committed([shard], [shard, other]))
    ledger.end(early)
    ledger.finish(reported, other)  # the shard is lost before the commit
    ledger.end(reported)
    began = time.monotonic()
    since, given_up = ledger.begin(), ledger.begin()
    ledger.end(given_up)  # left to the shard's next owner
    for number in (late, since):
        ledger.finish(number, shard)
        ledger.end(number)
    assert ledger.select_committed([shard], [shard]) == [late, since]
    ledger.committed([late])
    assert reader.uncommitted(began, time.monotonic()) == Uncommitted(at_once=2, in_all=3)  # reported, since, given up
    later = time.monotonic()
    ledger.committed([since])
    assert reader.uncommitted(later, time.monotonic()) == Uncommitted(at_once=1, in_all=0)
    assert reader.uncommitted(time.monotonic(), time.monotonic()) == Uncommitted(0, 0)


def test_deliveries_of_a_killed_process_stay_uncommitted(tmp_path: Path) -> None:
    first, reader = AttemptLedger(tmp_path / "attempts"), AttemptLedgerReader(tmp_path / "attempts")
    number = first.begin()
    began = time.monotonic()
    second = AttemptLedger(tmp_path / "attempts")
    assert second.begin() == number  # the same number, but another delivery
    second.finish(number, first)
    second.committed(second.select_committed([first], [first]))
    now = time.monotonic()
    assert reader.uncommitted(began, now) == Uncommitted(at_once=1, in_all=1)
    assert reader.uncommitted(now, time.monotonic()) == Uncommitted(0, 0)
