"""State of a delivery whose queue entry is damaged, from what else the log has of it. Pure.

Its last dispatch, an older queue entry or its history name the recipients; those that later attempts have settled are
left out. The content is that of the dispatch, or in the spool under the name that the damaged entry still has: the
spool verifies the digest. A delivery that is not known to be active is due now, so that its recipients may get a second
copy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec.structs import replace

from mail.address import Address
from mail.directory.expand import expand
from mail.envelope import Recipient
from mail.log.damaged import Damaged
from mail.message import Content, DeliveryId, Inline, Message, Spooled
from mail.outcome import Deferred
from mail.record import (
    Active,
    Delivery,
    DeliveryAttempted,
    Dispatched,
    Event,
    MessageAccepted,
    QueueEntry,
    Resumed,
    Routed,
    WaitCause,
    Waiting,
)
from mail.route import Route
from router.decide import from_owner, with_recipients
from router.quarantine import NEVER_DUE, RESULT_DAMAGED
from router.routing_context import RoutingContext

_SPOOLED = re.compile(rb'\["spooled","([^"\\]{1,200})",([0-9]{1,12}),"([0-9a-f]{32})"\]')


@dataclass(frozen=True, slots=True)
class Remains:
    """What the log has of a delivery. `is_open`: its dispatch or its report is certainly not consumed yet."""

    dispatched: Dispatched | None = None
    is_open: bool = False
    history: Sequence[Event] = ()


def restored_entry(damaged: Damaged, remains: Remains, context: RoutingContext, now: datetime) -> QueueEntry | None:
    """The queue entry, or None if no open recipient is known."""
    dispatched, older = remains.dispatched, damaged.previous
    attempts = _attempts(DeliveryId(damaged.key), remains.history)
    # A dispatch may be attempted again after its report: that second report is ignored.
    is_open = remains.is_open and (dispatched is None or all(each.number < dispatched.number for each in attempts))
    if dispatched is not None and (older is None or older.attempts < dispatched.number):
        entry = _entry(dispatched.delivery, dispatched.content, dispatched.number - 1, is_open=is_open, now=now)
    elif older is None:
        delivery = _from_history(DeliveryId(damaged.key), remains.history, context)
        if delivery is None:
            return None
        entry = _entry(delivery, _spooled_content(damaged.frame), 0, is_open=is_open, now=now)
    elif isinstance(older.state, Active):
        content = older.content or _spooled_content(damaged.frame)
        entry = _entry(older.delivery, content, older.attempts, is_open=is_open, now=now)
    elif older.state.cause in (WaitCause.HELD, WaitCause.CORRUPT):
        entry = older
    else:
        entry = replace(older, state=replace(older.state, due=now))
    return _after_attempts(entry, attempts)


def _entry(delivery: Delivery, content: Content | None, attempts: int, *, is_open: bool, now: datetime) -> QueueEntry:
    if is_open:
        return QueueEntry(delivery, Active(now), None if isinstance(content, Inline) else content, attempts)
    if content is None:
        reason = "Its queue entry, with the content, is damaged"
        return QueueEntry(delivery, Waiting(NEVER_DUE, WaitCause.HELD, reason), None, attempts)
    return QueueEntry(delivery, Waiting(now, WaitCause.DEFERRED, str(RESULT_DAMAGED)), content, attempts)


def _attempts(delivery_id: DeliveryId, events: Sequence[Event]) -> Sequence[DeliveryAttempted]:
    details = [event.detail for event in events]
    return [each for each in details if isinstance(each, DeliveryAttempted) and each.delivery_id == delivery_id]


def _after_attempts(entry: QueueEntry, attempts: Sequence[DeliveryAttempted]) -> QueueEntry | None:
    """The entry after those attempts that it does not count: the last dispatch or the older entry may precede them.
    None if they have settled all recipients.
    """
    later = [attempt for attempt in attempts if attempt.number > entry.attempts]
    if not later:
        return entry
    settled = {each.recipient for attempt in later for each in attempt.outcomes if not isinstance(each, Deferred)}
    message = entry.delivery.message
    remaining = tuple(each for each in message.envelope.recipients if each.address not in settled)
    if not remaining:
        return None
    delivery = replace(entry.delivery, message=with_recipients(message, remaining))
    return replace(entry, delivery=delivery, attempts=max(attempt.number for attempt in later))


def _from_history(delivery_id: DeliveryId, events: Sequence[Event], context: RoutingContext) -> Delivery | None:
    """The delivery with all its recipients; its sender is the owner of their list, by the current directory."""
    message: Message | None = None
    route: Route | None = None
    addresses: tuple[Address, ...] = ()
    for event in events:
        detail = event.detail
        if isinstance(detail, MessageAccepted):
            message = detail.message
        elif isinstance(detail, Routed) and detail.delivery_id == delivery_id:
            route, addresses = detail.route, detail.recipients
        elif isinstance(detail, Resumed) and detail.delivery_id == delivery_id:
            route = detail.route
    if message is None or route is None or not addresses:
        return None
    originals = message.envelope.recipients
    known = {recipient.address: recipient for recipient in originals}
    expansion = expand(originals, context.snapshot, context.policy.alias_depth)
    current = {final.recipient.address: final for final in expansion.final_recipients}
    recipients = tuple(
        current[address].recipient
        if address in current
        else known.get(address) or (originals[0].readdressed(address) if len(originals) == 1 else Recipient(address))
        for address in addresses
    )
    owners = {current[address].owner for address in addresses if address in current}
    owner = owners.pop() if len(owners) == 1 else None  # those of a delivery have the same, unless it was changed
    return Delivery(delivery_id, with_recipients(from_owner(message, owner), recipients), route)


def _spooled_content(frame: bytes) -> Spooled | None:
    match = _SPOOLED.search(frame)
    return None if match is None else Spooled(match[1].decode("utf-8", "replace"), int(match[2]), match[3].decode())
