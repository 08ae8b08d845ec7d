"""State of a delivery whose queue entry is damaged, from what else the log has of it. Pure.

Its last dispatch, an older queue entry or its history name the recipients. The content is that of the dispatch, or in
the spool under the name that the damaged entry still has: the spool verifies the digest. A delivery that is not known
to be active is due now, so that its recipients may get a second copy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec.structs import replace

from mail.address import Address
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
from router.decide import with_recipients
from router.quarantine import NEVER_DUE, RESULT_DAMAGED

_SPOOLED = re.compile(rb'\["spooled","([^"\\]{1,200})",([0-9]{1,12}),"([0-9a-f]{32})"\]')


@dataclass(frozen=True, slots=True)
class Remains:
    """What the log has of a delivery. `is_open`: its dispatch or its report is certainly not consumed yet."""

    dispatched: Dispatched | None = None
    is_open: bool = False
    history: Sequence[Event] = ()


def restored_entry(damaged: Damaged, remains: Remains, now: datetime) -> QueueEntry | None:
    """The queue entry, or None if the recipients are unknown."""
    dispatched, older = remains.dispatched, damaged.previous
    if dispatched is not None and (older is None or older.attempts < dispatched.number):
        attempts = dispatched.number - 1
        return _entry(dispatched.delivery, dispatched.content, attempts, is_open=remains.is_open, now=now)
    if older is None:
        found = _from_history(DeliveryId(damaged.key), remains.history)
        if found is None:
            return None
        delivery, attempts = found
        return _entry(delivery, _spooled_content(damaged.frame), attempts, is_open=remains.is_open, now=now)
    if isinstance(older.state, Waiting):
        if older.state.cause in (WaitCause.HELD, WaitCause.CORRUPT):
            return older
        return replace(older, state=replace(older.state, due=now))
    content = older.content or _spooled_content(damaged.frame)
    return _entry(older.delivery, content, older.attempts, is_open=remains.is_open, now=now)


def _entry(delivery: Delivery, content: Content | None, attempts: int, *, is_open: bool, now: datetime) -> QueueEntry:
    if is_open:
        return QueueEntry(delivery, Active(now), None if isinstance(content, Inline) else content, attempts)
    if content is None:
        reason = "Its queue entry, with the content, is damaged"
        return QueueEntry(delivery, Waiting(NEVER_DUE, WaitCause.HELD, reason), None, attempts)
    return QueueEntry(delivery, Waiting(now, WaitCause.DEFERRED, str(RESULT_DAMAGED)), content, attempts)


def _from_history(delivery_id: DeliveryId, events: Sequence[Event]) -> tuple[Delivery, int] | None:
    """The delivery with its open recipients, and the number of its attempts."""
    message: Message | None = None
    route: Route | None = None
    addresses: tuple[Address, ...] = ()
    settled: set[Address] = set()
    attempts = 0
    for event in events:
        detail = event.detail
        if isinstance(detail, MessageAccepted):
            message = detail.message
        elif isinstance(detail, Routed) and detail.delivery_id == delivery_id:
            route, addresses = detail.route, detail.recipients
        elif isinstance(detail, Resumed) and detail.delivery_id == delivery_id:
            route = detail.route
        elif isinstance(detail, DeliveryAttempted) and detail.delivery_id == delivery_id:
            attempts = max(attempts, detail.number)
            settled |= {each.recipient for each in detail.outcomes if not isinstance(each, Deferred)}
    if message is None or route is None:
        return None
    originals = message.envelope.recipients
    known = {recipient.address: recipient for recipient in originals}
    recipients = tuple(
        known.get(address) or (originals[0].readdressed(address) if len(originals) == 1 else Recipient(address))
        for address in addresses
        if address not in settled
    )
    return (Delivery(delivery_id, with_recipients(message, recipients), route), attempts) if recipients else None


def _spooled_content(frame: bytes) -> Spooled | None:
    match = _SPOOLED.search(frame)
    return None if match is None else Spooled(match[1].decode("utf-8", "replace"), int(match[2]), match[3].decode())
