"""Records for tests: one of each kind and variant (`GOLDEN`), and builders for the contract suite."""

from __future__ import annotations

import struct
import zlib
from datetime import UTC, datetime, timedelta

from mail.address import Address
from mail.envelope import Body, Envelope, Notify, Recipient, Ret
from mail.log.codec import MAGIC, encode
from mail.message import Client, Content, DeliveryId, Inline, Message, QueueId, Spooled, delivery_id, make_queue_id
from mail.outcome import Deferred, Delivered, Failed
from mail.record import (
    Accepted,
    Active,
    Attempted,
    Bounced,
    Closed,
    Delivery,
    DeliveryAttempted,
    Discarded,
    Dispatched,
    Event,
    EventDetail,
    FailedByRouter,
    MessageAccepted,
    QueueEntry,
    Record,
    Resumed,
    Routed,
    WaitCause,
    Waiting,
)
from mail.reply import Reply
from mail.route import RelayProtocol, Route, ToMailbox, ToMx, ToRelay, Unresolved

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ALICE = Address("alice", "example.test")
BOB = Address("Bob", "example.org")
CONTENT = b"Subject: hello\r\n\r\nhello\r\n"
SPOOLED = Spooled("01/01HSPOOLED", 1_000_000, "0123456789abcdef0123456789abcdef")
OK = Reply(250, "2.0.0", "Ok: queued as 4F1C")
LATER = Reply(451, "4.3.0", "Try again\nlater")
NEVER = Reply(550, "", "No such user")
RELAY = ToRelay("relay.example.test", 25)
HOST = "mx.example.test[192.0.2.1]:25"

_PLAIN = (Recipient(ALICE),)
_RICH = (
    Recipient(ALICE, Address("sales team", "example.test"), frozenset({Notify.FAILURE, Notify.DELAY}), "rfc822;x+40y"),
    Recipient(Address("jörg", "bücher.example"), None, frozenset({Notify.NEVER})),
    Recipient(Address("carol", "[IPv6:2001:db8::1]")),
)


def frame_with_header(version: int, header: bytes) -> bytes:
    """A frame without content, its checksum valid."""
    return struct.pack(">2sBxIII", MAGIC, version, len(header), 0, zlib.crc32(header)) + header


def frame_of_version(version: int, record: Record) -> bytes:
    """A frame of an unknown version."""
    frame = bytearray(encode(record) or b"")
    frame[2] = version
    return bytes(frame)


def queue_id(number: int) -> QueueId:
    return make_queue_id(1_772_366_400_000 + number, number * 7919)


def message(number: int = 1) -> Message:
    client = Client("192.0.2.7", 40001, "client.example.org", "ESMTP")
    return Message(queue_id(number), "default", NOON, Envelope(BOB, _PLAIN), len(CONTENT), client)


RICH = Message(
    queue_id(2),
    "tenant-2",
    datetime(2026, 3, 1, 13, tzinfo=UTC),
    Envelope(BOB, _RICH, Body.EIGHT_BIT, True, Ret.HEADERS, "id=1 +\u00e9"),
    99,
    Client("2001:db8::7", 65535, "[IPv6:2001:db8::7]", "ESMTPSA", "bob@example.org"),
)
NULL = Message(queue_id(3), "default", NOON, Envelope(None, _PLAIN), 0)
BINARY = Message(
    queue_id(4),
    "default",
    datetime(1970, 1, 1, tzinfo=UTC),
    Envelope(
        ALICE,
        (Recipient(ALICE, BOB), Recipient(BOB, None, frozenset(), "rfc822;Bob@example.org")),
        Body.BINARY,
        ret=Ret.FULL,
    ),
    1 << 40,
    Client("192.0.2.7", 25, "", "SMTP"),
)


def accepted(number: int = 1, content: bytes = CONTENT) -> Accepted:
    return Accepted(message(number), Inline(content))


def delivery(number: int = 1, route: Route = RELAY, part: int = 1) -> Delivery:
    return Delivery(delivery_id(queue_id(number), part), message(number), route)


def dispatched(number: int = 1, route: Route = RELAY, content: Content | None = None) -> Dispatched:
    return Dispatched(delivery(number, route), 1, Inline(CONTENT) if content is None else content)


def attempted(number: int = 1) -> Attempted:
    taken = Delivered(ALICE, OK, HOST)
    return Attempted(delivery_id(queue_id(number), 1), 1, (taken,), NOON, timedelta(microseconds=1500))


def queue_entry(number: int = 1, attempts: int = 0, part: int = 1) -> QueueEntry:
    return QueueEntry(delivery(number, part=part), Active(NOON), None, attempts)


def event(number: int = 1, what: EventDetail | None = None, time: datetime = NOON) -> Event:
    return Event(queue_id(number), time, Closed() if what is None else what)


_ID: DeliveryId = delivery_id(queue_id(1), 1)
_WAITS = Waiting(datetime.max.replace(tzinfo=UTC), WaitCause.HELD, "held by a person")
_OUTCOMES = (Delivered(ALICE, OK, HOST), Deferred(BOB, LATER), Failed(ALICE, NEVER, HOST))
_MX = ToMx("example.test", ((10, "mx1.example.test"), (20, "mx2.example.test")))

GOLDEN: dict[str, Record] = {
    "accepted-inline": accepted(),
    "accepted-empty": Accepted(NULL, Inline(b"")),
    "accepted-spooled": Accepted(RICH, SPOOLED),
    "accepted-binary": Accepted(BINARY, Inline(bytes(range(256)))),
    "dispatched-inline": dispatched(),
    "dispatched-mx-without-hosts": Dispatched(Delivery(_ID, NULL, ToMx("example.test", ())), 1 << 31, Inline(b"")),
    "dispatched-spooled": dispatched(1, ToMailbox("alice@example.test"), SPOOLED),
    "attempted": attempted(),
    "attempted-mixed": Attempted(_ID, 3, _OUTCOMES, NOON, timedelta(minutes=5), SPOOLED, b"Subject: x\r\n\xff"),
    "attempted-mailbox": Attempted(_ID, 1, (Delivered(ALICE, OK), Delivered(BOB, OK)), NOON, timedelta(days=1)),
    "attempted-headers": Attempted(_ID, 1, _OUTCOMES[2:], NOON, timedelta(0), None, b"Subject: x\r\n\r\n"),
    "queue-entry-active": queue_entry(),
    "queue-entry-null-sender": QueueEntry(
        Delivery(_ID, NULL, RELAY), Waiting(NOON, WaitCause.DEFERRED, ""), SPOOLED, 1, NEVER
    ),
    "queue-entry-empty-inline": QueueEntry(Delivery(_ID, BINARY, RELAY), _WAITS, Inline(b""), last_remote=HOST),
    "queue-entry-inline": QueueEntry(delivery(1, _MX), Active(NOON), Inline(CONTENT)),
    "queue-entry-held": QueueEntry(delivery(1, _MX), _WAITS, SPOOLED, 4, LATER, HOST),
    "queue-entry-unresolved": QueueEntry(
        delivery(1, Unresolved("example.test")), Waiting(NOON, WaitCause.UNRESOLVED, "DNS does not answer"), SPOOLED
    ),
    "queue-entry-lmtp": QueueEntry(
        delivery(1, ToRelay("::1", 24, RelayProtocol.LMTP)), Waiting(NOON, WaitCause.DEFERRED, ""), SPOOLED, 1
    ),
    "event-received": event(2, MessageAccepted(RICH)),
    "event-received-without-client": event(3, MessageAccepted(NULL)),
    "event-routed": event(1, Routed(_ID, _MX, (ALICE, BOB), None)),
    "event-routed-waits": event(1, Routed(_ID, _MX, (ALICE,), Waiting(NOON, WaitCause.THROTTLED, "window"))),
    "event-resumed": event(1, Resumed(_ID, 2, RELAY)),
    "event-attempt": event(1, DeliveryAttempted(_ID, 2, _OUTCOMES, NOON, timedelta(seconds=2), NOON)),
    "event-attempt-last": event(1, DeliveryAttempted(_ID, 2, _OUTCOMES[:1], NOON, timedelta(0), None)),
    "event-failed-by-router": event(1, FailedByRouter(_OUTCOMES[2:])),
    "event-bounced": event(1, Bounced((ALICE,), queue_id(9))),
    "event-discarded": event(1, Discarded((ALICE, BOB))),
    "event-closed": event(1, Closed()),
}
