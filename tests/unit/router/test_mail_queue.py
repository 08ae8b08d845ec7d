"""Tests of the queue's indexes: pruning loses no entry, and memory stays bounded."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec.structs import replace

from mail.message import Spooled, delivery_id
from mail.record import Delivery, QueueEntry, WaitCause, Waiting
from mail.route import ToRelay
from router import mail_queue
from router.mail_queue import MailQueue
from router.site_limits import SiteLimits
from tests.support.builders.routing import START, is_same_queue, message

SPOOLED = Spooled("big", 10, "0" * 32)


def waiting(number: int, *, seconds: int = 0) -> QueueEntry:
    own_message = message(f"u{number}@far.test")
    delivery = Delivery(delivery_id(own_message.queue_id, 1), own_message, ToRelay("smart.test", 25))
    return QueueEntry(delivery, Waiting(START + timedelta(seconds=seconds), WaitCause.DEFERRED, "later"), SPOOLED, 1)


def test_prune_drops_only_stale_entries() -> None:
    queue, fresh = MailQueue(), MailQueue()
    due, later, held = waiting(1), waiting(2, seconds=9000), waiting(3)
    queue.apply(due)
    assert queue.due(START, SiteLimits(), 0) == []  # moves the entry to the queue of its site
    for seconds in range(5000):
        queue.apply(replace(later, state=Waiting(START + timedelta(seconds=seconds), WaitCause.DEFERRED, "later")))
    queue.apply(later)
    queue.apply(replace(held, state=Waiting(START, WaitCause.HELD, "by hand")))
    queue.prune()
    assert len(queue._not_due) <= 3
    for entry in queue.entries():
        fresh.apply(entry)
    assert is_same_queue(queue, fresh)
    assert set(queue.indexed()) == {due.delivery.id, later.delivery.id}
    assert queue.next_due() == START + timedelta(seconds=9000)
    assert queue.due(START, SiteLimits(), 10) == [due.delivery.id]
    assert queue.due(START + timedelta(seconds=9000), SiteLimits(), 10) == [later.delivery.id]


def test_interned_values_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_queue, "INTERNED_MAX", 20)
    queue = MailQueue()
    entries = [waiting(number) for number in range(100)]
    for entry in entries:
        queue.apply(entry)
    assert len(queue._interned) <= 20
    assert list(queue.entries()) == entries


def test_equal_values_are_shared() -> None:
    queue = MailQueue()
    for number in range(2):
        queue.apply(replace(waiting(number), last_remote="".join(["mx.far", ".test"])))
    own_message, other = queue.entries()
    assert own_message.delivery.route is other.delivery.route
    assert own_message.last_remote is other.last_remote
    assert own_message.delivery.message.envelope.reverse_path is other.delivery.message.envelope.reverse_path
