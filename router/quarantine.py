"""Quarantine of a message or delivery for which `decide` raises an exception. Pure.

A new message or a waiting delivery is held with the reason, visible in `eilpost queue` and `eilpost trace`; after an
attempt every recipient that was not delivered is deferred. Aliases, next hops and DSNs are not evaluated, so that the
same bug cannot occur again.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import assert_never

from msgspec.structs import replace

from mail.message import delivery_id
from mail.outcome import Deferred, Delivered
from mail.record import (
    Accepted,
    Active,
    Attempted,
    AttemptRecorded,
    Closed,
    Delivery,
    Event,
    QueueEntry,
    Received,
    Record,
    Routed,
    Settled,
    WaitCause,
    Waiting,
)
from mail.reply import Reply
from mail.route import Unresolved
from router.decide import Due, Fact, with_recipients
from router.mail_queue import MailQueue
from router.retry import retry_step
from router.routing_context import RoutingPolicy

NEVER_DUE = datetime(9999, 12, 31, tzinfo=UTC)
NOT_PROCESSED = Reply(451, "4.3.0", "Internal error while processing the delivery result")


def quarantine(queue: MailQueue, fact: Fact, reason: str, policy: RoutingPolicy, now: datetime) -> Iterator[Record]:
    """Yield the records to commit instead of the decision on `fact`. Apply each to `queue` before taking the next."""
    hold = Waiting(NEVER_DUE, WaitCause.HELD, reason)
    match fact:
        case Accepted():
            message = fact.message
            if queue.open_deliveries(message.queue_id):
                return  # duplicate append
            recipients = tuple(recipient.address for recipient in message.envelope.recipients)
            route = Unresolved(recipients[0].domain if recipients else policy.hostname)
            delivery = Delivery(delivery_id(message.queue_id, 1), message, route)
            yield Event(message.queue_id, now, Received(message))
            yield QueueEntry(delivery, hold, fact.content)
            yield Event(message.queue_id, now, Routed(delivery.id, route, recipients, hold))
        case Attempted():
            yield from _defer_attempt(queue, fact, hold, policy, now)
        case Due():
            entry = queue.entry(fact.delivery_id)
            if entry is not None and isinstance(entry.state, Waiting):
                yield replace(entry, state=hold)
        case _:
            assert_never(fact)


def _defer_attempt(
    queue: MailQueue, fact: Attempted, hold: Waiting, policy: RoutingPolicy, now: datetime
) -> Iterator[Record]:
    entry = queue.entry(fact.delivery_id)
    if entry is None or not isinstance(entry.state, Active) or fact.number != entry.attempts + 1:
        return
    delivery, message = entry.delivery, entry.delivery.message
    delivered = {outcome.recipient for outcome in fact.outcomes if isinstance(outcome, Delivered)}
    remaining = tuple(recipient for recipient in message.envelope.recipients if recipient.address not in delivered)
    content = fact.content or entry.content
    due = None
    if remaining:
        due = now + retry_step(policy.retry, fact.number)
        yield QueueEntry(
            replace(delivery, message=with_recipients(message, remaining)),
            hold if content is None else Waiting(due, WaitCause.DEFERRED, str(NOT_PROCESSED)),
            content,
            fact.number,
            NOT_PROCESSED,
        )
    else:
        yield Settled(delivery.id)
    outcomes = tuple(
        outcome if isinstance(outcome, Delivered) else Deferred(outcome.recipient, NOT_PROCESSED)
        for outcome in fact.outcomes
    )
    yield Event(
        message.queue_id, now, AttemptRecorded(delivery.id, fact.number, outcomes, fact.started, fact.duration, due)
    )
    if not queue.open_deliveries(message.queue_id):
        yield Event(message.queue_id, now, Closed())
