"""Pure codec of log records: frames to records and back.

A frame is a fixed prefix (magic, version, lengths of header and content, CRC-32 of both), a JSON header with short
keys, and the raw content. Version 1 readers ignore unknown header keys; every other change needs a new version. A frame
that cannot be read raises FrameError and is never dropped; golden files in `tests/golden/` keep old frames readable.
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
    decode_delivery,
    decode_event_detail,
    decode_instant,
    decode_message,
    decode_outcome,
    decode_state,
    encode_delivery,
    encode_duration,
    encode_event_detail,
    encode_instant,
    encode_message,
    encode_outcome,
    encode_reply,
    encode_spooled,
    encode_state,
)
from mail.message import Content, DeliveryId, Inline, QueueId, Spooled
from mail.record import Accepted, Attempted, Dispatched, Event, Pending, Record, Settled
from mail.reply import Reply

MAGIC = b"\xe1P"
VERSION = 1

_PREFIX = Struct(">2sBxIII")  # magic, version, header length, content length, CRC-32 of both
_PREFIX_BYTES = _PREFIX.size


class FrameError(ValueError):
    """The bytes are not a frame that this version can read; the text gives the reason."""


def encode(record: Record, *, without_content: bool = False) -> bytes | None:
    """The frame of a record; None (a tombstone) for Settled. With `without_content`, the inline content of Accepted and
    Dispatched is left out; the caller stores it and passes it to `decode`.
    """
    content = b""
    match record:
        case Accepted():
            wire: Wire = {"k": "accepted", "m": encode_message(record.message)}
            if isinstance(record.content, Spooled):
                wire["c"] = encode_spooled(record.content)
            elif not without_content:
                content = record.content.data
        case Dispatched():
            wire = {"k": "dispatched", "d": encode_delivery(record.delivery), "n": record.number}
            if isinstance(record.content, Spooled):
                wire["c"] = encode_spooled(record.content)
            elif not without_content:
                content = record.content.data
        case Attempted():
            content = record.headers
            wire = {
                "k": "attempted",
                "d": record.delivery_id,
                "n": record.number,
                "o": [encode_outcome(outcome) for outcome in record.outcomes],
                "t": encode_instant(record.started),
                "u": encode_duration(record.duration),
            }
            if record.content is not None:
                wire["c"] = encode_spooled(record.content)
        case Pending():
            wire = {
                "k": "pending",
                "d": encode_delivery(record.delivery),
                "s": encode_state(record.state),
                "n": record.attempts,
            }
            match record.content:
                case Inline():
                    content = record.content.data
                    wire["c"] = 1
                case Spooled():
                    wire["c"] = encode_spooled(record.content)
                case None:
                    pass
                case _:
                    assert_never(record.content)
            if record.last is not None:
                wire["l"] = encode_reply(record.last)
            if record.last_remote is not None:
                wire["h"] = record.last_remote
        case Event():
            wire = {
                "k": "event",
                "q": record.queue_id,
                "t": encode_instant(record.time),
                "w": encode_event_detail(record.detail),
            }
        case Settled():
            return None
        case _:
            assert_never(record)
    header = _dump_json(wire)
    checksum = zlib.crc32(content, zlib.crc32(header))
    return b"".join((_PREFIX.pack(MAGIC, VERSION, len(header), len(content), checksum), header, content))


def decode(frame: bytes, separate_content: bytes | None = None) -> Record:
    """The record of a frame, with content that was stored separately. Raises only FrameError."""
    try:
        magic, version, header_bytes, content_bytes, checksum = _PREFIX.unpack_from(frame)
    except (error, TypeError):  # SQLite may give text for a damaged row
        raise FrameError(f"it ends after {len(frame)} bytes, inside the prefix") from None
    if magic != MAGIC:
        raise FrameError("it does not begin as a frame of eilpost")
    if version != VERSION:
        raise FrameError(f"its version is {version}; this eilpost reads version {VERSION}: use the newer one")
    content_start = _PREFIX_BYTES + header_bytes
    if len(frame) != content_start + content_bytes:
        raise FrameError(f"it should have {content_start + content_bytes} bytes and has {len(frame)}")
    header = frame[_PREFIX_BYTES:content_start]
    content = frame[content_start:]
    if zlib.crc32(content, zlib.crc32(header)) != checksum:
        raise FrameError("it is damaged (checksum)")
    if separate_content is not None:
        content = separate_content
    try:
        wire = orjson.loads(header)
        return _DECODERS[wire["k"]](wire, content)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as reason:
        raise FrameError(f"its header cannot be read ({type(reason).__name__}: {reason})") from reason


def _dump_json(wire: Wire) -> bytes:
    try:
        return orjson.dumps(wire)
    except TypeError:
        # A remote server's reply may contain lone surrogates, which JSON cannot encode; they become "?".
        return orjson.dumps(_replace_surrogates(wire))


def _replace_surrogates(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {key: _replace_surrogates(item) for key, item in value.items()}
        case list() | tuple():
            return [_replace_surrogates(item) for item in value]
        case _:
            return value


def _content_of(wire: Wire, content: bytes) -> Content:
    spooled = wire.get("c")
    return Inline(content) if spooled is None else Spooled(*spooled)


def _decode_accepted(wire: Wire, content: bytes) -> Accepted:
    return Accepted(decode_message(wire["m"]), _content_of(wire, content))


def _decode_dispatched(wire: Wire, content: bytes) -> Dispatched:
    return Dispatched(decode_delivery(wire["d"]), wire["n"], _content_of(wire, content))


def _decode_attempted(wire: Wire, content: bytes) -> Attempted:
    spooled = wire.get("c")
    return Attempted(
        DeliveryId(wire["d"]),
        wire["n"],
        tuple([decode_outcome(outcome) for outcome in wire["o"]]),
        decode_instant(wire["t"]),
        timedelta(microseconds=wire["u"]),
        None if spooled is None else Spooled(*spooled),
        content,
    )


def _decode_pending(wire: Wire, content: bytes) -> Pending:
    content_reference = wire.get("c")
    last = wire.get("l")
    return Pending(
        decode_delivery(wire["d"]),
        decode_state(wire["s"]),
        None
        if content_reference is None
        else Inline(content)
        if content_reference == 1
        else Spooled(*content_reference),
        wire["n"],
        None if last is None else Reply(*last),
        wire.get("h"),
    )


def _decode_event(wire: Wire, _: bytes) -> Event:
    return Event(QueueId(wire["q"]), decode_instant(wire["t"]), decode_event_detail(wire["w"]))


_DECODERS: dict[str, Callable[[Wire, bytes], Record]] = {
    "accepted": _decode_accepted,
    "dispatched": _decode_dispatched,
    "attempted": _decode_attempted,
    "pending": _decode_pending,
    "event": _decode_event,
}
