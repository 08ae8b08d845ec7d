"""Message metadata: queue id, envelope, client and location of the content. The content is never parsed here."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b
from typing import NewType

from mail.envelope import Envelope
from mail.frame_struct import FrameStruct, Instant, Size

QueueId = NewType("QueueId", str)
DeliveryId = NewType("DeliveryId", str)

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CROCKFORD_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
_RANDOM_BITS = (1 << 80) - 1
_CROCKFORD_VALUE = {letter: value for value, letter in enumerate(_CROCKFORD)}


class Client(FrameStruct, frozen=True):
    """The SMTP client that sent the message. `user` is the authenticated login, or None."""

    ip: str
    port: int
    helo: str
    protocol: str  # RFC 3848: "SMTP", "ESMTP", "ESMTPS", "ESMTPSA", ...
    user: str | None = None


class Message(FrameStruct, frozen=True):
    """The metadata of a message. `client` is None for a DSN of eilpost."""

    queue_id: QueueId
    tenant: str
    received: Instant
    envelope: Envelope
    size_bytes: Size  # of the content, with the added Received header
    client: Client | None = None


class Inline(FrameStruct, frozen=True, tag="inline"):
    """Content inside a record: the whole message, CRLF lines, not dot-stuffed."""

    data: bytes


class Spooled(FrameStruct, frozen=True, tag="spooled"):
    """Content in the spool under `name`. `digest` is BLAKE2b-128 in hex."""

    name: str
    size_bytes: Size
    digest: str


Content = Inline | Spooled


def make_queue_id(milliseconds: int, random: int) -> QueueId:
    """The ULID of an instant (milliseconds since 1970) and 80 random bits: 26 characters that sort by time."""
    value = (milliseconds << 80) | (random & _RANDOM_BITS)
    return QueueId("".join([_CROCKFORD_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)]))


def derived_queue_id(now: datetime, seed: str) -> QueueId:
    """A queue id whose random part is derived from `seed`: for messages created by a pure decision (DSNs)."""
    digest = blake2b(seed.encode(), digest_size=10).digest()
    return make_queue_id(int(now.timestamp() * 1000), int.from_bytes(digest))


def queue_id_time(queue_id: QueueId) -> datetime:
    """The time at which a queue id was created. Raises ValueError when it is not a ULID."""
    if len(queue_id) != 26 or any(letter not in _CROCKFORD_VALUE for letter in queue_id):
        raise ValueError(f"{queue_id!r} is not a queue id (26 letters and digits)")
    milliseconds = 0
    for letter in queue_id[:10]:
        milliseconds = milliseconds * 32 + _CROCKFORD_VALUE[letter]
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def delivery_id(queue_id: QueueId, number: int) -> DeliveryId:
    """The id of a message's `number`-th delivery: `QUEUEID-number`."""
    return DeliveryId(f"{delivery_prefix(queue_id)}{number}")


def delivery_prefix(queue_id: QueueId) -> str:
    """The common prefix of the ids of a message's deliveries."""
    return f"{queue_id}-"


def delivery_number(delivery: DeliveryId) -> int:
    """The number inside a delivery id, from 1."""
    return int(delivery.rpartition("-")[2])


def queue_id_of(delivery: DeliveryId) -> QueueId:
    """The queue id inside a delivery id."""
    return QueueId(delivery[:26])
