"""The ledger counts the events of every recipient in any order."""

from __future__ import annotations

import tracemalloc

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from eilpost.load.ledger import Ledger

WIDE = 3  # recipients of a message


class LedgerMachine(RuleBasedStateMachine):
    """Any order of replies, copies and reports: the counters equal those of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger("run", WIDE)
        self.now = 1.0
        self.results: dict[int, str] = {}  # by recipient
        self.copies: dict[int, int] = {}
        self.reports: dict[int, int] = {}
        self.resent: set[int] = set()

    def some(self, data: st.DataObject) -> int:
        self.now += 0.5
        return data.draw(st.integers(0, self.ledger.counts.issued - 1))

    @rule()
    def issue(self) -> None:
        number = self.ledger.issue()
        self.ledger.dot(number, self.now)

    @precondition(lambda self: self.ledger.counts.issued)
    @rule(data=st.data(), result=st.sampled_from(["accepted", "doubt", "refused"]))
    def result(self, data: st.DataObject, result: str) -> None:
        number = self.some(data)
        indexes = [index for index in range(WIDE * number, WIDE * number + WIDE) if index not in self.results]
        if not indexes:
            return
        self.results |= dict.fromkeys(indexes, result)
        if result == "accepted":
            self.ledger.accept_message(number, indexes, 100, [b"2.0.0 Ok: queued as Q1"], self.now)
        elif result == "doubt":
            self.ledger.mark_in_doubt(indexes)
        else:
            self.ledger.refuse(indexes, "550")

    @precondition(lambda self: self.ledger.counts.issued)
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        index = WIDE * self.some(data) + data.draw(st.integers(0, WIDE - 1))
        if index not in self.results and not self.copies.get(index) and not self.reports.get(index):
            self.resent.add(index)
            self.ledger.resend([index])

    @precondition(lambda self: self.ledger.counts.issued)
    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        number = self.some(data)
        index = WIDE * number + data.draw(st.integers(0, WIDE - 1))
        self.copies[index] = self.copies.get(index, 0) + 1
        self.ledger.arrive(number, [index], True, self.now)

    @precondition(lambda self: self.ledger.counts.issued)
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        index = WIDE * self.some(data) + data.draw(st.integers(0, WIDE - 1))
        self.reports[index] = self.reports.get(index, 0) + 1
        self.ledger.bounce([index], self.now)

    @invariant()
    def counts(self) -> None:
        counts, accepted = self.ledger.counts, {index for index, result in self.results.items() if result == "accepted"}
        assert counts.accepted == len(accepted)
        assert counts.delivered == len(accepted & self.copies.keys())
        assert counts.bounced == len((accepted & self.reports.keys()) - self.copies.keys())
        lost = accepted - self.copies.keys() - self.reports.keys()
        assert self.ledger.in_flight == len(lost)
        assert [each.recipient_index for each in self.ledger.open()] == sorted(lost)
        assert (self.ledger.oldest_dot() is None) == (not lost)
        settled = self.copies.keys() | self.reports.keys()
        assert counts.in_doubt_settled == sum(
            result == "doubt" and index in settled for index, result in self.results.items()
        )
        assert counts.in_doubt == sum(result == "doubt" for result in self.results.values())
        refused = {index for index, result in self.results.items() if result == "refused"}
        assert counts.refused == len(refused)
        assert counts.unexpected == len((refused & settled) - self.resent)
        assert counts.arrivals == sum(self.copies.values()) + sum(self.reports.values())
        assert counts.arrivals - counts.duplicates - counts.duplicate_bounces == len(settled)


TestHistories = LedgerMachine.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_open_recipients_are_listed_as_lost() -> None:
    ledger = Ledger("run")
    for _ in range(3):
        ledger.dot(ledger.issue(), 1.0)
    ledger.accept_message(0, [0], 100, [b"2.0.0 Ok: queued as 01M85Z6AY04KY16VEBBMPVZX8A"], 2.0)
    ledger.accept_message(1, [1], 100, [b"OK id=1abc-xyz"], 2.5)
    ledger.accept_message(2, [2], 100, [b"accepted"], 2.5)
    assert ledger.first_attempt(1)
    assert not ledger.first_attempt(1)
    ledger.arrive(0, [0], True, 3.0)
    assert [(lost.id, lost.queue_id, lost.deferred) for lost in ledger.open()] == [
        ("run-1", "1abc-xyz", True),
        ("run-2", "", False),
    ]
    assert len(list(ledger.open(1))) == 1
    assert ledger.queue_id(0) == "01M85Z6AY04KY16VEBBMPVZX8A"


def test_incorrect_arrivals_are_counted() -> None:
    ledger = Ledger("run")
    for _ in range(2):
        ledger.dot(ledger.issue(), 1.0)
    ledger.refuse([0], "554")
    ledger.arrive(0, [0], True, 2.0)
    ledger.arrive(1, [0], True, 2.0)  # the content of 1 for the recipient of 0
    ledger.arrive(7, [7], True, 2.0)  # never sent
    ledger.arrive(1, [1], False, 2.0)
    counts = ledger.counts
    assert (counts.unexpected, counts.misdirected, counts.damaged) == (1, 2, 1)


def test_duplicates_after_a_resend_are_counted_separately() -> None:
    ledger = Ledger("run")
    ledger.dot(ledger.issue(), 1.0)
    ledger.resend([0])  # 4xx to the dot, but stored
    ledger.accept_message(0, [0], 100, [], 2.0)
    for _ in range(2):
        ledger.arrive(0, [0], True, 3.0)
    assert (ledger.counts.duplicates, ledger.counts.duplicates_resent) == (1, 1)


def test_memory_of_a_million_messages_is_about_forty_megabytes() -> None:
    tracemalloc.start()
    try:
        ledger = Ledger("run")
        for number in range(100_000):
            ledger.issue()
            ledger.accept_message(number, [number], 100, [b"queued as 01M85Z6AY04KY16VEBBMPVZX8A"], 1.0)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 6_000_000


def test_reply_texts_are_counted_in_bounded_memory() -> None:
    ledger = Ledger("run")
    for number in range(1000):
        ledger.issue()
        ledger.refuse([number], f"554 {number}")
    assert len(ledger.replies) <= 51
    assert sum(ledger.replies.values()) == 1000
