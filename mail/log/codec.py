"""Records to frames and back: with `wire`, the one place that knows the bytes of a record. Pure.

A frame is a fixed prefix (magic, version, lengths of header and content, CRC-32 of both), a header (JSON, short keys)
and the raw content bytes, never base64. Each record has its own pair of functions here, so renaming a
field changes no wire. Readers of version 1 ignore header keys they do not know: a new key that old readers may ignore
needs no new version, everything else does. What cannot be read raises FrameError; it is never dropped. Golden files in
`tests/golden/` keep old frames readable. Next: `mail/log/embedded/__init__.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from datetime import timedelta
from struct import Struct, error
from typing import Any, assert_never

import orjson

from mail.log.wire import (
    Wire,
    delivery_wire,
    duration_wire,
    happening_wire,
    instant_wire,
    message_wire,
    outcome_wire,
    reply_wire,
    spooled_wire,
    state_wire,
    to_delivery,
    to_happening,
    to_instant,
    to_message,
    to_outcome,
    to_state,
)
from mail.message import Content, DeliveryId, Inline, QueueId, Spooled
from mail.record import Accepted, Attempted, Dispatched, Event, Pending, Record, Settled
from mail.reply import Reply

MAGIC = b"\xe1P"
VERSION = 1

_PREFIX = Struct(">2sBxIII")  # magic, version, header length, content length, CRC-32 of both
_PREFIX_BYTES = _PREFIX.size


class FrameError(ValueError):
    """These bytes are not a frame this version can read; the text says why."""


def encode(record: Record, *, apart: bool = False) -> bytes | None:
    """The frame of a record; None (a tombstone) for Settled. With `apart`, the inline content of Accepted and
    Dispatched is left out: the caller keeps it, and gives it back to `decode`.
    """
    content = b""
    match record:
        case Accepted():
            wire: Wire = {"k": "accepted", "m": message_wire(record.message)}
            if isinstance(record.content, Spooled):
                wire["c"] = spooled_wire(record.content)
            elif not apart:
                content = record.content.data
        case Dispatched():
            wire = {"k": "dispatched", "d": delivery_wire(record.delivery), "n": record.number}
            if isinstance(record.content, Spooled):
                wire["c"] = spooled_wire(record.content)
            elif not apart:
                content = record.content.data
        case Attempted():
            content = record.headers
            wire = {
                "k": "attempted",
                "d": record.delivery_id,
                "n": record.number,
                "o": [outcome_wire(outcome) for outcome in record.outcomes],
                "t": instant_wire(record.started),
                "u": duration_wire(record.duration),
            }
            if record.content is not None:
                wire["c"] = spooled_wire(record.content)
        case Pending():
            wire = {
                "k": "pending",
                "d": delivery_wire(record.delivery),
                "s": state_wire(record.state),
                "n": record.attempts,
            }
            match record.content:
                case Inline():
                    content = record.content.data
                    wire["c"] = 1
                case Spooled():
                    wire["c"] = spooled_wire(record.content)
                case None:
                    pass
                case _:
                    assert_never(record.content)
            if record.last is not None:
                wire["l"] = reply_wire(record.last)
            if record.last_remote is not None:
                wire["h"] = record.last_remote
        case Event():
            wire = {
                "k": "event",
                "q": record.queue_id,
                "t": instant_wire(record.time),
                "w": happening_wire(record.what),
            }
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


def _content_of(wire: Wire, content: bytes) -> Content:
    spooled = wire.get("c")
    return Inline(content) if spooled is None else Spooled(*spooled)


def _to_accepted(wire: Wire, content: bytes) -> Accepted:
    return Accepted(to_message(wire["m"]), _content_of(wire, content))


def _to_dispatched(wire: Wire, content: bytes) -> Dispatched:
    return Dispatched(to_delivery(wire["d"]), wire["n"], _content_of(wire, content))


def _to_attempted(wire: Wire, content: bytes) -> Attempted:
    spooled = wire.get("c")
    return Attempted(
        DeliveryId(wire["d"]),
        wire["n"],
        tuple([to_outcome(outcome) for outcome in wire["o"]]),
        to_instant(wire["t"]),
        timedelta(microseconds=wire["u"]),
        None if spooled is None else Spooled(*spooled),
        content,
    )


def _to_pending(wire: Wire, content: bytes) -> Pending:
    where = wire.get("c")
    last = wire.get("l")
    return Pending(
        to_delivery(wire["d"]),
        to_state(wire["s"]),
        None if where is None else Inline(content) if where == 1 else Spooled(*where),
        wire["n"],
        None if last is None else Reply(*last),
        wire.get("h"),
    )


def _to_event(wire: Wire, _: bytes) -> Event:
    return Event(QueueId(wire["q"]), to_instant(wire["t"]), to_happening(wire["w"]))


_READERS: dict[str, Callable[[Wire, bytes], Record]] = {
    "accepted": _to_accepted,
    "dispatched": _to_dispatched,
    "attempted": _to_attempted,
    "pending": _to_pending,
    "event": _to_event,
}
