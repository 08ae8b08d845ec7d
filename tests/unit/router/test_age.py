"""Tests of the age index: the oldest delivery of each state, the runnable ones, and the cost of queries."""

from __future__ import annotations

from datetime import timedelta
from time import perf_counter

import pytest
from msgspec.structs import replace

from mail.message import Spooled, delivery_id
from mail.record import Active, Delivery, QueueEntry, QueueTombstone, WaitCause, Waiting
from mail.route import ToRelay
from router.age import STALE_ITEMS_MAX
from router.mail_queue import QUARANTINE_REASON, MailQueue
from router.site_limits import SiteLimits
from tests.support.builders.routing import START, message

SPOOLED = Spooled("big", 10, "0" * 32)
ROUTE = ToRelay("smart.test", 25)


def entry(
    number: int, why: WaitCause = WaitCause.DEFERRED, *, due: int = 0, recipients: int = 1, reason: str = "later"
) -> QueueEntry:
    own_message = message(*(f"u{number}-{place}@far.test" for place in range(recipients)), number=number)
    delivery = Delivery(delivery_id(own_message.queue_id, 1), own_message, ROUTE)
    return QueueEntry(delivery, Waiting(START + timedelta(seconds=due), why, reason), SPOOLED, 1)


def at(queue: MailQueue, seconds: int) -> tuple[int, float | None]:
    """Runnable recipients, and the runnable time of the oldest in seconds."""
    queue.due(START + timedelta(seconds=seconds), SiteLimits(), 0)
    since = queue.age_index.oldest_runnable()
    return queue.age_index.runnable_recipients, None if since is None else START.timestamp() + seconds - since


def test_deferred_delivery_is_runnable_from_its_retry_time() -> None:
    queue = MailQueue()
    queue.apply(entry(1, due=60, recipients=3))
    assert at(queue, 59) == (0, None)
    assert at(queue, 60) == (3, 0)
    assert at(queue, 960) == (3, 900)


def test_active_and_throttled_are_runnable_but_held_and_unresolved_are_not() -> None:
    queue = MailQueue()
    for each in (entry(1, WaitCause.HELD), entry(2, WaitCause.UNRESOLVED)):
        queue.apply(each)
    assert at(queue, 10) == (0, None)
    queue.apply(entry(3, WaitCause.THROTTLED, due=4))
    assert at(queue, 10) == (1, 6)
    queue.apply(replace(entry(4, recipients=2), state=Active(START + timedelta(seconds=1))))
    assert at(queue, 10) == (3, 9)
    queue.apply(QueueTombstone(entry(4).delivery.id))
    assert at(queue, 10) == (1, 6)


def test_entry_applied_twice_counts_once() -> None:
    queue = MailQueue()
    for _ in range(2):  # spooling the content applies the entry again
        queue.apply(entry(1, due=5))
    assert at(queue, 5) == (1, 0)
    queue.apply(entry(1, due=9))
    assert at(queue, 6) == (0, None)
    assert at(queue, 9) == (1, 0)


def test_due_entries_stay_runnable_after_clock_is_set_back() -> None:
    queue = MailQueue()
    queue.apply(entry(1, due=100))
    assert at(queue, 100) == (1, 0)
    queue.apply(entry(2, due=50))
    assert at(queue, 10)[0] == 2  # an entry that was due stays runnable
    assert at(queue, 200) == (2, 150)


def test_quarantined_counts_bug_holds_and_not_operator_holds() -> None:
    queue = MailQueue()
    queue.apply(entry(1, WaitCause.HELD, reason=f"{QUARANTINE_REASON} (KeyError); see its log"))
    queue.apply(entry(2, WaitCause.HELD, reason="by hand"))
    assert queue.quarantined_deliveries == 1
    queue.apply(entry(1, WaitCause.DEFERRED))
    assert queue.quarantined_deliveries == 0


def test_stale_entries_are_bounded() -> None:
    queue = MailQueue()
    queue.apply(entry(1, WaitCause.HELD))  # the oldest entry, never removed
    queue.apply(replace(entry(2), state=Active(START)))
    for number in range(3, 5000):
        queue.apply(replace(entry(number), state=Active(START + timedelta(seconds=number))))
        queue.apply(QueueTombstone(entry(number).delivery.id))
        queue.prune()
    ages = queue.age_index
    assert len(ages._runnable) + sum(map(len, ages._by_state.values())) <= 3 * 2 + STALE_ITEMS_MAX + 1
    assert at(queue, 5000) == (1, 5000)
    assert queue.age_index.oldest()["held"] == START.timestamp()


@pytest.mark.slow
def test_query_time_does_not_grow_with_the_queue() -> None:
    """A query of a queue a hundred times as long takes the same time, within measurement noise."""

    def seconds_at(size: int) -> float:
        queue = MailQueue()
        for number in range(size):
            queue.apply(entry(number, due=number % 7 * 1000))
        queue.due(START + timedelta(seconds=3000), SiteLimits(), 0)
        best = float("inf")
        for _ in range(20):
            started = perf_counter()
            queue.recipients(), queue.age_index.oldest(), queue.age_index.oldest_runnable()
            best = min(best, perf_counter() - started)
        return best

    assert seconds_at(50_000) < 20 * seconds_at(500)
