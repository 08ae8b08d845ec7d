"""Records of the message log, the only data that roles exchange. Pure values.

Topics and partition keys are in `mail/log/topics.py`, the encoding in `mail/log/codec.py`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never

from mail.address import Address
from mail.frame_struct import FrameStruct, Instant
from mail.message import Content, DeliveryId, Message, QueueId, Spooled, queue_id_of, queue_id_time
from mail.outcome import ExchangerReply, Outcome
from mail.reply import Reply
from mail.route import Route


class Accepted(FrameStruct, frozen=True, tag="accepted"):
    """A message was accepted: eilpost is responsible for it as soon as this record is durable."""

    message: Message
    content: Content


class Delivery(FrameStruct, frozen=True):
    """The recipients of one message that share a next hop.

    `message.envelope.recipients` holds only the open recipients of this delivery.
    """

    id: DeliveryId
    message: Message
    route: Route


class Active(FrameStruct, frozen=True, tag="active"):
    """Dispatched; its attempt is not reported yet: active."""

    since: Instant


class WaitCause(StrEnum):
    """The reason why a delivery waits. Values are in stored records, metrics and `eilpost queue`."""

    DEFERRED = "deferred"  # the last attempt was deferred
    THROTTLED = "throttled"  # its site or the shard has reached a limit of active deliveries or bytes
    HELD = "held"  # quarantined
    UNRESOLVED = "unresolved"  # DNS has not answered yet
    CORRUPT = "corrupt"  # the bytes of a damaged record of the log, in `content`; no delivery


class Waiting(FrameStruct, frozen=True, tag="waiting"):
    """Waits until `due`. A held delivery is due at the maximum datetime; no command releases it yet. A corrupt record
    is removed when it is due.
    """

    due: Instant
    cause: WaitCause
    reason: str  # for operators: the last reply, "DNS lookup of example.test MX timed out", ...


ACTIVE = "active"
STATES = (ACTIVE, *(cause.value for cause in WaitCause))


def state_name(state: Active | Waiting) -> str:
    """The state of an open delivery in metrics and `eilpost queue`: one of `STATES`."""
    return ACTIVE if isinstance(state, Active) else state.cause.value


class QueueEntry(FrameStruct, frozen=True, tag="queue_entry"):
    """An open delivery, or a damaged record of the log in quarantine (`WaitCause.CORRUPT`, without recipients): a
    record of the queue. Key: the delivery id; a later record replaces an earlier one.

    `content` is None while it is inside `Dispatched`; for a waiting delivery it is `Spooled`, or `Inline` when the
    spool failed. `attempts` counts reported attempts; `last` is the last reply that was not 2xx.
    """

    delivery: Delivery
    state: Active | Waiting
    content: Content | None
    attempts: int = 0
    last: Reply | None = None
    last_remote: str | None = None


def is_corrupt(entry: QueueEntry) -> bool:
    """Whether an entry is a damaged record in quarantine, not a delivery."""
    return isinstance(entry.state, Waiting) and entry.state.cause is WaitCause.CORRUPT


class Tombstone(FrameStruct, frozen=True):
    """Removes a key of a compacted topic. It has no frame; a subclass has the key as its only field."""


class QueueTombstone(Tombstone, frozen=True):
    """Tombstone of a queue entry: the delivery has left this queue. All its recipients are delivered or failed, or it
    was moved to another log.
    """

    delivery_id: DeliveryId


class Dispatched(FrameStruct, frozen=True, tag="dispatched"):
    """One attempt is requested. `number` is the number of the attempt, from 1."""

    delivery: Delivery
    number: int
    content: Content


class Attempted(FrameStruct, frozen=True, tag="attempted"):
    """The report of one attempt: an outcome for each recipient, in the order of the delivery.

    `content` is the spooled content when any recipient is deferred, else None. `headers` are the first bytes of the
    message, for a DSN, when any recipient failed or is deferred, else empty. `asked`: the exchangers in the order in
    which they were asked, if there were several.
    """

    delivery_id: DeliveryId
    number: int
    outcomes: tuple[Outcome, ...]
    started: Instant
    duration: timedelta
    content: Spooled | None = None
    headers: bytes = b""
    asked: tuple[ExchangerReply, ...] = ()


class MessageAccepted(FrameStruct, frozen=True, tag="received"):
    """History: the message was accepted from `client` and read by the router."""

    message: Message


class Routed(FrameStruct, frozen=True, tag="routed"):
    """History: a delivery was created. `waiting` is None when it was dispatched immediately."""

    delivery_id: DeliveryId
    route: Route
    recipients: tuple[Address, ...]
    waiting: Waiting | None


class Resumed(FrameStruct, frozen=True, tag="resumed"):
    """History: a waiting delivery was dispatched, for attempt `number`."""

    delivery_id: DeliveryId
    number: int
    route: Route


class DeliveryAttempted(FrameStruct, frozen=True, tag="attempt"):
    """History: an attempt ended. `next_due` is set when recipients are still open. `asked` as in Attempted."""

    delivery_id: DeliveryId
    number: int
    outcomes: tuple[Outcome, ...]
    started: Instant
    duration: timedelta
    next_due: Instant | None
    asked: tuple[ExchangerReply, ...] = ()


class FailedByRouter(FrameStruct, frozen=True, tag="failed"):
    """History: recipients that the router failed: no route, alias loop, or lifetime exceeded."""

    outcomes: tuple[Outcome, ...]


class Bounced(FrameStruct, frozen=True, tag="bounced"):
    """History: a DSN that lists or counts `recipients` was accepted as message `dsn`. The DSN itself is an
    `Accepted`.
    """

    recipients: tuple[Address, ...]
    dsn: QueueId


class DiscardReason(StrEnum):
    """Why no DSN is sent. Values are in stored records and log lines."""

    NULL_REVERSE_PATH = "null reverse-path"
    MEMBER_LIMIT = "limit of reports about recipients behind an alias without owner"


class Discarded(FrameStruct, frozen=True, tag="discarded"):
    """History: `recipients` failed, and no DSN reports it."""

    recipients: tuple[Address, ...]
    reason: DiscardReason = DiscardReason.NULL_REVERSE_PATH


class Closed(FrameStruct, frozen=True, tag="closed"):
    """History: no delivery of the message is open."""


EventDetail = MessageAccepted | Routed | Resumed | DeliveryAttempted | FailedByRouter | Bounced | Discarded | Closed


class Event(FrameStruct, frozen=True, tag="event"):
    """One event of a message's history. Written only by the router."""

    queue_id: QueueId
    time: Instant
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


Record = Accepted | QueueEntry | QueueTombstone | Dispatched | Attempted | Event
