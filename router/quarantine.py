"""Quarantine of a message or delivery for which `decide` raises an exception, and of damaged records. Pure.

A new message or a waiting delivery is held with the reason, visible in `eilpost queue` and `eilpost trace`; after an
attempt every recipient that was not delivered is deferred. Aliases, next hops and DSNs are not evaluated, so that the
same bug cannot occur again. The bytes of a damaged record become a queue entry without recipients (`corrupt`), and its
delivery is deferred (`router/damage.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import assert_never
from zlib import crc32

from msgspec.structs import replace

from mail.envelope import Envelope
from mail.log.damaged import Damaged
from mail.message import (
    Content,
    DeliveryId,
    Inline,
    Message,
    QueueId,
    delivery_id,
    derived_queue_id,
    queue_id_time,
)
from mail.outcome import Deferred, Delivered
from mail.record import (
    Accepted,
    Active,
    Attempted,
    Closed,
    Delivery,
    DeliveryAttempted,
    Event,
    MessageAccepted,
    QueueEntry,
    QueueTombstone,
    Record,
    Routed,
    WaitCause,
    Waiting,
)
from mail.reply import Reply
from mail.route import Unresolved
from router.decide import Due, Trigger, with_recipients
from router.mail_queue import MailQueue
from router.retry import retry_step
from router.routing_context import RoutingPolicy

NEVER_DUE = datetime(9999, 12, 31, tzinfo=UTC)
NOT_PROCESSED = Reply(451, "4.3.0", "Internal error while processing the delivery result")
RESULT_DAMAGED = Reply(451, "4.3.0", "The log's record of this attempt is damaged")


def quarantine(
    queue: MailQueue, trigger: Trigger, reason: str, policy: RoutingPolicy, now: datetime
) -> Iterator[Record]:
    """Yield the records to commit instead of the decision. Apply each to `queue` before taking the next."""
    hold = Waiting(NEVER_DUE, WaitCause.HELD, reason)
    match trigger:
        case Accepted():
            message = trigger.message
            if queue.open_deliveries(message.queue_id):
                return  # duplicate append
            recipients = tuple(recipient.address for recipient in message.envelope.recipients)
            route = Unresolved(recipients[0].domain if recipients else policy.hostname)
            delivery = Delivery(delivery_id(message.queue_id, 1), message, route)
            yield Event(message.queue_id, now, MessageAccepted(message))
            yield QueueEntry(delivery, hold, trigger.content)
            yield Event(message.queue_id, now, Routed(delivery.id, route, recipients, hold))
        case Attempted():
            yield from _defer_attempt(queue, trigger, hold, policy, now)
        case Due():
            entry = queue.entry(trigger.delivery_id)
            if entry is not None and isinstance(entry.state, Waiting):
                yield replace(entry, state=hold)
        case _:
            assert_never(trigger)


def _defer_attempt(
    queue: MailQueue, trigger: Attempted, hold: Waiting, policy: RoutingPolicy, now: datetime
) -> Iterator[Record]:
    entry = queue.entry(trigger.delivery_id)
    if entry is None or not isinstance(entry.state, Active) or trigger.number != entry.attempts + 1:
        return
    delivery, message = entry.delivery, entry.delivery.message
    delivered = {outcome.recipient for outcome in trigger.outcomes if isinstance(outcome, Delivered)}
    remaining = tuple(recipient for recipient in message.envelope.recipients if recipient.address not in delivered)
    content = trigger.content or entry.content
    due = None
    if remaining:
        due = now + retry_step(policy.retry, trigger.number)
        yield QueueEntry(
            replace(delivery, message=with_recipients(message, remaining)),
            hold if content is None else Waiting(due, WaitCause.DEFERRED, str(NOT_PROCESSED)),
            content,
            trigger.number,
            NOT_PROCESSED,
        )
    else:
        yield QueueTombstone(delivery.id)
    outcomes = tuple(
        outcome if isinstance(outcome, Delivered) else Deferred(outcome.recipient, NOT_PROCESSED)
        for outcome in trigger.outcomes
    )
    yield Event(
        message.queue_id,
        now,
        DeliveryAttempted(delivery.id, trigger.number, outcomes, trigger.started, trigger.duration, due, trigger.asked),
    )
    if not queue.open_deliveries(message.queue_id):
        yield Event(message.queue_id, now, Closed())


def corrupt_entry(damaged: Damaged, owns: Callable[[QueueId], bool], due: datetime, now: datetime) -> QueueEntry:
    """The bytes of a damaged record as a queue entry without recipients, which is removed at `due`. `owns`: whether a
    queue id belongs to this shard.
    """
    queue_id = _queue_id(damaged, owns, now)
    data = damaged.frame + damaged.content
    received = min(queue_id_time(queue_id), now)
    message = Message(queue_id, "", received, Envelope(None, ()), len(data))
    route = Unresolved(f"{damaged.topic}.corrupt.invalid")
    place = _key_digest(damaged) if damaged.offset is None else str(damaged.offset)
    delivery = Delivery(DeliveryId(f"{queue_id}-{damaged.topic}-{place}"), message, route)
    return QueueEntry(delivery, Waiting(due, WaitCause.CORRUPT, f"{damaged.position}: {damaged.reason}"), Inline(data))


def _key_digest(damaged: Damaged) -> str:
    """Distinguishes the damaged queue entries of one message. A damaged key may have any bytes."""
    key = damaged.key.encode() if damaged.raw_key is None else damaged.raw_key
    return f"key-{crc32(key):08x}"


def _queue_id(damaged: Damaged, owns: Callable[[QueueId], bool], now: datetime) -> QueueId:
    """The queue id in the record if it can be read, else a new one of this shard."""
    queue_id = damaged.queue_id
    if queue_id is not None and owns(queue_id):
        return queue_id
    seed = f"{damaged.position}: {damaged.frame[:1024].hex()}"
    return next(new for number in count() if owns(new := derived_queue_id(now, f"{seed} {number}")))


def defer_lost(
    entry: QueueEntry, content: Content | None, policy: RoutingPolicy, now: datetime
) -> tuple[QueueEntry, Event]:
    """An active delivery whose dispatch or report is damaged is deferred: its recipients may get a second copy. Without
    content it is held.
    """
    number = entry.attempts + 1
    due = now + retry_step(policy.retry, number)
    state = Waiting(due, WaitCause.DEFERRED, str(RESULT_DAMAGED))
    if content is None:
        state = Waiting(NEVER_DUE, WaitCause.HELD, "The log's record of its attempt, with the content, is damaged")
    recipients = entry.delivery.message.envelope.recipients
    outcomes = tuple(Deferred(recipient.address, RESULT_DAMAGED) for recipient in recipients)
    detail = DeliveryAttempted(entry.delivery.id, number, outcomes, now, timedelta(0), None if content is None else due)
    return (
        replace(entry, state=state, content=content, attempts=number, last=RESULT_DAMAGED, last_remote=None),
        Event(entry.delivery.message.queue_id, now, detail),
    )
