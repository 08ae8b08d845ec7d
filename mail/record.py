"""Records of the message log, the only data that roles exchange. Pure values.

Topics and partition keys are in `mail/log/topics.py`, the encoding in `mail/log/codec.py`.
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
    """A message was accepted: eilpost is responsible for it as soon as this record is durable."""

    message: Message
    content: Content


@dataclass(frozen=True, slots=True)
class Delivery:
    """The recipients of one message that share a next hop.

    `message.envelope.recipients` holds only the open recipients of this delivery.
    """

    id: DeliveryId
    message: Message
    route: Route


@dataclass(frozen=True, slots=True)
class Active:
    """Dispatched; its attempt is not reported yet: active."""

    since: datetime


class WaitCause(StrEnum):
    """The reason why a delivery waits. Values are in stored records and never change; `state_name` has the names."""

    DEFERRED = "retry"  # the last attempt was deferred
    THROTTLED = "window"  # its site or the shard has reached a limit of active deliveries or bytes
    HELD = "hold"  # quarantined
    UNRESOLVED = "resolving"  # DNS has not answered yet


@dataclass(frozen=True, slots=True)
class Waiting:
    """Waits until `due`. A held delivery is due at the maximum datetime; no command releases it yet."""

    due: datetime
    cause: WaitCause
    reason: str  # for operators: the last reply, "DNS lookup of example.test MX timed out", ...


_STATE_NAMES = {
    WaitCause.DEFERRED: "deferred",
    WaitCause.THROTTLED: "throttled",
    WaitCause.HELD: "held",
    WaitCause.UNRESOLVED: "unresolved",
}
STATES = ("active", *_STATE_NAMES.values())


def state_name(state: Active | Waiting) -> str:
    """The state of an open delivery in metrics and `eilpost queue`: one of `STATES`."""
    return "active" if isinstance(state, Active) else _STATE_NAMES[state.cause]


@dataclass(frozen=True, slots=True)
class Pending:
    """An open delivery: a record of the queue. Key: the delivery id; a later record replaces an earlier one.

    `content` is None while it is inside `Dispatched`; for a waiting delivery it is `Spooled`, or `Inline` when the
    spool failed. `attempts` counts reported attempts; `last` is the last reply that was not 2xx.
    """

    delivery: Delivery
    state: Active | Waiting
    content: Content | None
    attempts: int = 0
    last: Reply | None = None
    last_remote: str | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """A delivery is closed: the tombstone of its queue record."""

    delivery_id: DeliveryId


@dataclass(frozen=True, slots=True)
class Dispatched:
    """One attempt is requested. `number` is the number of the attempt, from 1."""

    delivery: Delivery
    number: int
    content: Content


@dataclass(frozen=True, slots=True)
class Attempted:
    """The report of one attempt: an outcome for each recipient, in the order of the delivery.

    `content` is the spooled content when any recipient is deferred, else None. `headers` are the first bytes of the
    message, for a DSN, when any recipient failed or is deferred, else empty.
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
    """History: a delivery was created. `waiting` is None when it was dispatched immediately."""

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
    """History: an attempt ended. `next_due` is set when recipients are still open."""

    delivery_id: DeliveryId
    number: int
    outcomes: tuple[Outcome, ...]
    started: datetime
    duration: timedelta
    next_due: datetime | None


@dataclass(frozen=True, slots=True)
class FailedByRouter:
    """History: recipients that the router failed: no route, alias loop, or lifetime exceeded."""

    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Bounced:
    """History: a DSN about `recipients` was accepted as message `dsn`. The DSN itself is an `Accepted`."""

    recipients: tuple[Address, ...]
    dsn: QueueId


@dataclass(frozen=True, slots=True)
class Discarded:
    """History: `recipients` failed, and no DSN reports it, because the reverse-path is null."""

    recipients: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """History: no delivery of the message is open."""


EventDetail = Received | Routed | Resumed | AttemptRecorded | FailedByRouter | Bounced | Discarded | Closed


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a message's history. Written only by the router."""

    queue_id: QueueId
    time: datetime
    detail: EventDetail


def received_time(record: Accepted | Dispatched | Attempted) -> datetime:
    """When the message of a record was received; for `Attempted` the time in its queue id."""
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
