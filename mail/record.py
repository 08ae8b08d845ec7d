"""The records the roles exchange, frozen and named in the past tense; the only thing they exchange.

Which topic and shard each belongs to: `mail/log/topics.py`; its bytes: `mail/log/codec.py`. Pure values.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never

from mail.address import Address
from mail.message import Content, DeliveryId, Message, QueueId, Spooled, queue_id_of, queue_id_time
from mail.outcome import Outcome
from mail.reply import Reply
from mail.route import Route


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message is ours from the instant at which this record is durable (state S2)."""

    message: Message
    content: Content


@dataclass(frozen=True, slots=True)
class Delivery:
    """A part of a message that travels together: the recipients with one next hop.

    `message.envelope.recipients` holds only the recipients of this delivery that are still open.
    """

    id: DeliveryId
    message: Message
    route: Route


@dataclass(frozen=True, slots=True)
class Active:
    """Dispatched and not yet reported (state S3)."""

    since: datetime


class WaitCause(StrEnum):
    """Why a delivery waits (state S4)."""

    DEFERRED = "retry"  # the last attempt was deferred
    THROTTLED = "window"  # its site has as many in hand as it may
    HELD = "hold"  # a person holds it
    UNRESOLVED = "resolving"  # DNS has not answered yet


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not before `due` (state S4). A hold is due at the end of time and released by a command."""

    due: datetime
    cause: WaitCause
    reason: str  # for people: the last reply, "DNS for example.test does not answer", ...


_STATE_NAMES = {
    WaitCause.DEFERRED: "deferred",
    WaitCause.THROTTLED: "throttled",
    WaitCause.HELD: "held",
    WaitCause.UNRESOLVED: "unresolved",
}
STATES = ("active", *_STATE_NAMES.values())


def state_name(state: Active | Waiting) -> str:
    """The state of an open delivery as metrics and `eilpost queue` name it, one of `STATES`."""
    return "active" if isinstance(state, Active) else _STATE_NAMES[state.cause]


@dataclass(frozen=True, slots=True)
class Pending:
    """One line of the queue: an open delivery. Key: the delivery id. A later line replaces an earlier one.

    `content` is None while the content rides inside `Dispatched`; a waiting line has it spooled, or inside itself where
    the spool failed.
    `attempts` counts those reported; `last` is the last reply that was not a success.
    """

    delivery: Delivery
    state: Active | Waiting
    content: Content | None
    attempts: int = 0
    last: Reply | None = None
    last_remote: str | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """A delivery is closed (state S5): the tombstone of its queue line."""

    delivery_id: DeliveryId


@dataclass(frozen=True, slots=True)
class Dispatched:
    """Carry this once. `number` is the attempt's number, from 1."""

    delivery: Delivery
    number: int
    content: Content


@dataclass(frozen=True, slots=True)
class Attempted:
    """A delivery was tried once: an outcome for each of its recipients, in their order.

    `content` is where the content lies now when any recipient is deferred (always spooled then), else None.
    `headers` are the message's first bytes, for a report, when any recipient failed or is deferred; else empty.
    """

    delivery_id: DeliveryId
    number: int
    outcomes: tuple[Outcome, ...]
    started: datetime
    duration: timedelta
    content: Spooled | None = None
    headers: bytes = b""


@dataclass(frozen=True, slots=True)
class Received:
    """History: the message was accepted from `client` and read by the router."""

    message: Message


@dataclass(frozen=True, slots=True)
class Routed:
    """History: a delivery was made. `waits` is None when it was dispatched at once."""

    delivery_id: DeliveryId
    route: Route
    recipients: tuple[Address, ...]
    waiting: Waiting | None


@dataclass(frozen=True, slots=True)
class Resumed:
    """History: a waiting delivery was dispatched, for attempt `number`."""

    delivery_id: DeliveryId
    number: int
    route: Route


@dataclass(frozen=True, slots=True)
class AttemptRecorded:
    """History: an attempt ended. `next_due` is set when something is left to try."""

    delivery_id: DeliveryId
    number: int
    outcomes: tuple[Outcome, ...]
    started: datetime
    duration: timedelta
    next_due: datetime | None


@dataclass(frozen=True, slots=True)
class Refused:
    """History: the router itself failed recipients (no route, an alias loop, the lifetime is over)."""

    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Bounced:
    """History: a DSN about `recipients` was accepted as message `dsn`, or None: no one to tell (null reverse-path)."""

    recipients: tuple[Address, ...]
    dsn: QueueId | None


@dataclass(frozen=True, slots=True)
class Closed:
    """History: nothing of the message is left to do."""


EventDetail = Received | Routed | Resumed | AttemptRecorded | Refused | Bounced | Closed


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a message's history, for people and integrations. Written only by the router."""

    queue_id: QueueId
    time: datetime
    detail: EventDetail


QueueLine = Pending | Settled


def received_time(record: Accepted | Dispatched | Attempted) -> datetime:
    """When the message a record is about was received; of a report only its queue id says so."""
    match record:
        case Accepted():
            return record.message.received
        case Dispatched():
            return record.delivery.message.received
        case Attempted():
            return queue_id_time(queue_id_of(record.delivery_id))
        case _:
            assert_never(record)


Record = Accepted | Pending | Settled | Dispatched | Attempted | Event
