"""Records to frames and back: the one place that knows the bytes of a record. Pure.

A frame is a fixed prefix (magic, version, lengths of header and content, CRC-32 of both), a header (JSON, short keys)
and the raw content bytes, never base64. Each record has its own pair of functions here, so renaming a
field changes no wire. Readers of version 1 ignore header keys they do not know: a new key that old readers may ignore
needs no new version, everything else does. What cannot be read raises FrameError; it is never dropped. Golden files in
`tests/golden/` keep old frames readable. Next: `mail/log/embedded/__init__.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from struct import Struct, error
from typing import Any, assert_never

import orjson

from mail.address import Address
from mail.envelope import Body, Envelope, Notify, Recipient, Ret
from mail.message import Client, Content, DeliveryId, Inline, Message, QueueId, Spooled
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import (
    Accepted,
    Attempted,
    Bounced,
    Closed,
    Delivery,
    Dispatched,
    Event,
    Happening,
    InHand,
    Pending,
    Record,
    Refused,
    Resumed,
    Routed,
    Settled,
    Took,
    Tried,
    Waiting,
    Why,
)
from mail.reply import Reply
from mail.route import Route, Speaks, ToMailbox, ToMx, ToRelay, Unresolved

MAGIC = b"\xe1P"
VERSION = 1

_PREFIX = Struct(">2sBxIII")  # magic, version, header length, content length, CRC-32 of both
_PREFIX_BYTES = _PREFIX.size
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_BODIES = {body.value: body for body in Body}
_WHYS = {why.value: why for why in Why}

Wire = dict[str, Any]


class FrameError(ValueError):
    """These bytes are not a frame this version can read; the text says why."""


def encode(record: Record, *, apart: bool = False) -> bytes | None:
    """The frame of a record; None (a tombstone) for Settled. With `apart`, the inline content of Accepted and
    Dispatched is left out: the caller keeps it, and gives it back to `decode`.
    """
    content = b""
    match record:
        case Accepted():
            wire: Wire = {"k": "accepted", "m": _message(record.message)}
            if isinstance(record.content, Spooled):
                wire["c"] = _spooled(record.content)
            elif not apart:
                content = record.content.data
        case Dispatched():
            wire = {"k": "dispatched", "d": _delivery(record.delivery), "n": record.number}
            if isinstance(record.content, Spooled):
                wire["c"] = _spooled(record.content)
            elif not apart:
                content = record.content.data
        case Attempted():
            content = record.headers
            wire = {
                "k": "attempted",
                "d": record.delivery_id,
                "n": record.number,
                "o": [_outcome(outcome) for outcome in record.outcomes],
                "t": _instant(record.started),
                "u": record.duration // _MICROSECOND,
            }
            if record.content is not None:
                wire["c"] = _spooled(record.content)
        case Pending():
            wire = {"k": "pending", "d": _delivery(record.delivery), "s": _state(record.state), "n": record.attempts}
            match record.content:
                case Inline():
                    content = record.content.data
                    wire["c"] = 1
                case Spooled():
                    wire["c"] = _spooled(record.content)
                case None:
                    pass
                case _:
                    assert_never(record.content)
            if record.last is not None:
                wire["l"] = _reply(record.last)
            if record.last_remote is not None:
                wire["h"] = record.last_remote
        case Event():
            wire = {"k": "event", "q": record.queue_id, "t": _instant(record.time), "w": _happening(record.what)}
        case Settled():
            return None
        case _:
            assert_never(record)
    header = _dump(wire)
    checksum = zlib.crc32(content, zlib.crc32(header))
    return b"".join((_PREFIX.pack(MAGIC, VERSION, len(header), len(content), checksum), header, content))


def decode(frame: bytes, apart: bytes | None = None) -> Record:
    """The record of a frame, with the content that was kept apart from it. Raises FrameError, and nothing else."""
    try:
        magic, version, header_bytes, content_bytes, checksum = _PREFIX.unpack_from(frame)
    except (error, TypeError):  # SQLite may give text for a damaged row
        raise FrameError(f"it ends after {len(frame)} bytes, inside the prefix") from None
    if magic != MAGIC:
        raise FrameError("it does not begin as a frame of eilpost")
    if version != VERSION:
        raise FrameError(f"its version is {version}; this eilpost reads version {VERSION}: use the newer one")
    content_at = _PREFIX_BYTES + header_bytes
    if len(frame) != content_at + content_bytes:
        raise FrameError(f"it should have {content_at + content_bytes} bytes and has {len(frame)}")
    header = frame[_PREFIX_BYTES:content_at]
    content = frame[content_at:]
    if zlib.crc32(content, zlib.crc32(header)) != checksum:
        raise FrameError("it is damaged (checksum)")
    if apart is not None:
        content = apart
    try:
        wire = orjson.loads(header)
        return _READERS[wire["k"]](wire, content)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as reason:
        raise FrameError(f"its header cannot be read ({type(reason).__name__}: {reason})") from reason


def _dump(wire: Wire) -> bytes:
    try:
        return orjson.dumps(wire)
    except TypeError:
        # A peer's odd octets (lone surrogates) must not make its reply unwritable; they become "?".
        return orjson.dumps(_scrubbed(wire))


def _scrubbed(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {key: _scrubbed(item) for key, item in value.items()}
        case list() | tuple():
            return [_scrubbed(item) for item in value]
        case _:
            return value


# --- values to wire


def _instant(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _address(address: Address) -> list[str]:
    return [address.local, address.domain]


def _recipient(recipient: Recipient) -> Wire:
    wire: Wire = {"a": [recipient.address.local, recipient.address.domain]}
    if recipient.original != recipient.address:
        wire["o"] = _address(recipient.original)
    if recipient.notify is not None:
        wire["n"] = sorted(notify.value for notify in recipient.notify)
    if recipient.orcpt is not None:
        wire["p"] = recipient.orcpt
    return wire


def _message(message: Message) -> Wire:
    envelope = message.envelope
    wire: Wire = {
        "q": message.queue_id,
        "t": message.tenant,
        "r": (message.received - _EPOCH) // _MICROSECOND,
        "s": message.size_bytes,
        "to": [_recipient(recipient) for recipient in envelope.recipients],
    }
    if envelope.reverse_path is not None:
        wire["f"] = _address(envelope.reverse_path)
    if envelope.body is not Body.SEVEN_BIT:
        wire["b"] = envelope.body.value
    if envelope.smtputf8:
        wire["u"] = 1
    if envelope.ret is not None:
        wire["ret"] = envelope.ret.value
    if envelope.envid is not None:
        wire["envid"] = envelope.envid
    client = message.client
    if client is not None:
        wire["c"] = [client.ip, client.port, client.helo, client.protocol, client.user]
    return wire


def _spooled(spooled: Spooled) -> list[str | int]:
    return [spooled.name, spooled.size_bytes, spooled.digest]


def _route(route: Route) -> list[Any]:
    match route:
        case ToMailbox():
            return ["mailbox", route.owner]
        case ToRelay():
            return ["relay", route.host, route.port, route.speaks.value]
        case ToMx():
            return ["mx", route.domain, route.hosts]
        case Unresolved():
            return ["unresolved", route.domain]
        case _:
            assert_never(route)


def _delivery(delivery: Delivery) -> Wire:
    return {"i": delivery.id, "m": _message(delivery.message), "r": _route(delivery.route)}


def _state(state: InHand | Waiting) -> list[Any]:
    match state:
        case InHand():
            return ["hand", _instant(state.since)]
        case Waiting():
            return [state.why.value, _instant(state.due), state.reason]
        case _:
            assert_never(state)


def _reply(reply: Reply) -> list[Any]:
    return [reply.code, reply.enhanced, reply.text]


def _outcome(outcome: Outcome) -> list[Any]:
    match outcome:
        case Delivered():
            kind = "delivered"
        case Deferred():
            kind = "deferred"
        case Failed():
            kind = "failed"
        case _:
            assert_never(outcome)
    return [kind, _address(outcome.recipient), _reply(outcome.reply), outcome.remote]


def _happening(what: Happening) -> list[Any]:
    match what:
        case Took():
            return ["took", _message(what.message)]
        case Routed():
            return [
                "routed",
                what.delivery_id,
                _route(what.route),
                [_address(recipient) for recipient in what.recipients],
                None if what.waits is None else _state(what.waits),
            ]
        case Resumed():
            return ["resumed", what.delivery_id, what.number, _route(what.route)]
        case Tried():
            return [
                "tried",
                what.delivery_id,
                what.number,
                [_outcome(outcome) for outcome in what.outcomes],
                _instant(what.started),
                what.duration // _MICROSECOND,
                None if what.next_due is None else _instant(what.next_due),
            ]
        case Refused():
            return ["refused", [_outcome(outcome) for outcome in what.outcomes]]
        case Bounced():
            return ["bounced", [_address(recipient) for recipient in what.recipients], what.dsn]
        case Closed():
            return ["closed"]
        case _:
            assert_never(what)


# --- wire to values; addresses are taken as they were stored, they were parsed when they came in


def _to_instant(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _to_recipient(wire: Wire) -> Recipient:
    local, domain = wire["a"]
    address = Address(local, domain)
    if len(wire) == 1:
        return Recipient(address, address)
    original = wire.get("o")
    notify = wire.get("n")
    return Recipient(
        address,
        address if original is None else Address(*original),
        None if notify is None else frozenset(Notify(word) for word in notify),
        wire.get("p"),
    )


def _to_message(wire: Wire) -> Message:
    get = wire.get
    sender = get("f")
    body = get("b")
    ret = get("ret")
    envelope = Envelope(
        None if sender is None else Address(*sender),
        tuple([_to_recipient(recipient) for recipient in wire["to"]]),
        Body.SEVEN_BIT if body is None else _BODIES[body],
        "u" in wire,
        None if ret is None else Ret(ret),
        get("envid"),
    )
    client = get("c")
    return Message(
        QueueId(wire["q"]),
        wire["t"],
        _EPOCH + timedelta(microseconds=wire["r"]),
        envelope,
        wire["s"],
        None if client is None else Client(*client),
    )


def _to_content(wire: Wire, content: bytes) -> Content:
    spooled = wire.get("c")
    return Inline(content) if spooled is None else Spooled(*spooled)


def _to_route(wire: list[Any]) -> Route:
    match wire:
        case ["mailbox", owner]:
            return ToMailbox(owner)
        case ["relay", host, port, speaks]:
            return ToRelay(host, port, Speaks(speaks))
        case ["mx", domain, hosts]:
            return ToMx(domain, tuple([(preference, name) for preference, name in hosts]))
        case ["unresolved", domain]:
            return Unresolved(domain)
        case _:
            raise ValueError(f"route {wire!r}")


def _to_delivery(wire: Wire) -> Delivery:
    return Delivery(DeliveryId(wire["i"]), _to_message(wire["m"]), _to_route(wire["r"]))


def _to_state(wire: list[Any]) -> InHand | Waiting:
    if wire[0] == "hand":
        return InHand(_to_instant(wire[1]))
    return _to_waiting(wire)


def _to_waiting(wire: list[Any]) -> Waiting:
    why, due, reason = wire
    return Waiting(_to_instant(due), _WHYS[why], reason)


_OUTCOMES: dict[str, type[Delivered] | type[Deferred] | type[Failed]] = {
    "delivered": Delivered,
    "deferred": Deferred,
    "failed": Failed,
}


def _to_outcome(wire: list[Any]) -> Outcome:
    kind, recipient, reply, remote = wire
    return _OUTCOMES[kind](Address(*recipient), Reply(*reply), remote)


def _to_happening(wire: list[Any]) -> Happening:
    match wire:
        case ["took", message]:
            return Took(_to_message(message))
        case ["routed", delivery, route, recipients, waits]:
            addresses = tuple([Address(*recipient) for recipient in recipients])
            return Routed(delivery, _to_route(route), addresses, None if waits is None else _to_waiting(waits))
        case ["resumed", delivery, number, route]:
            return Resumed(delivery, number, _to_route(route))
        case ["tried", delivery, number, outcomes, started, duration, next_due]:
            return Tried(
                delivery,
                number,
                tuple([_to_outcome(outcome) for outcome in outcomes]),
                _to_instant(started),
                timedelta(microseconds=duration),
                None if next_due is None else _to_instant(next_due),
            )
        case ["refused", outcomes]:
            return Refused(tuple([_to_outcome(outcome) for outcome in outcomes]))
        case ["bounced", recipients, dsn]:
            return Bounced(tuple([Address(*recipient) for recipient in recipients]), dsn)
        case ["closed"]:
            return Closed()
        case _:
            raise ValueError(f"event {wire[0]!r}")


def _to_accepted(wire: Wire, content: bytes) -> Accepted:
    return Accepted(_to_message(wire["m"]), _to_content(wire, content))


def _to_dispatched(wire: Wire, content: bytes) -> Dispatched:
    return Dispatched(_to_delivery(wire["d"]), wire["n"], _to_content(wire, content))


def _to_attempted(wire: Wire, content: bytes) -> Attempted:
    spooled = wire.get("c")
    return Attempted(
        DeliveryId(wire["d"]),
        wire["n"],
        tuple([_to_outcome(outcome) for outcome in wire["o"]]),
        _to_instant(wire["t"]),
        timedelta(microseconds=wire["u"]),
        None if spooled is None else Spooled(*spooled),
        content,
    )


def _to_pending(wire: Wire, content: bytes) -> Pending:
    where = wire.get("c")
    last = wire.get("l")
    return Pending(
        _to_delivery(wire["d"]),
        _to_state(wire["s"]),
        None if where is None else Inline(content) if where == 1 else Spooled(*where),
        wire["n"],
        None if last is None else Reply(*last),
        wire.get("h"),
    )


def _to_event(wire: Wire, _: bytes) -> Event:
    return Event(QueueId(wire["q"]), _to_instant(wire["t"]), _to_happening(wire["w"]))


_READERS: dict[str, Callable[[Wire, bytes], Record]] = {
    "accepted": _to_accepted,
    "dispatched": _to_dispatched,
    "attempted": _to_attempted,
    "pending": _to_pending,
    "event": _to_event,
}
