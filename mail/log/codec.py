"""Pure codec of log records: frames to records and back.

A frame is a fixed prefix (magic, version, lengths of header and content, CRC-32 of both), a JSON header, which is the
record without its content (`mail/frame_struct.py`), and the content as raw bytes: of Attempted the first bytes of the
message (`headers`). All versions have the same prefix, which distinguishes damage from a newer version; neither is
ever dropped. Golden files in `tests/golden/` keep old frames readable.
"""

from __future__ import annotations

import zlib
from functools import cache
from struct import Struct, error
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import replace

from mail.frame_struct import FrameStruct
from mail.log import frame_version_1
from mail.message import Inline
from mail.record import Accepted, Attempted, Dispatched, QueueEntry, Record, Tombstone

MAGIC = b"\xe1P"
VERSION = 2  # frozen at release 0.1.0: until then fields and tags may change within it

_PREFIX = Struct(">2sBxIII")  # magic, version, header length, content length, CRC-32 of both
_PREFIX_BYTES = _PREFIX.size
_EMPTY = Inline(b"")  # stands in the header for content that follows it

UNREADABLE = (msgspec.DecodeError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_ENCODER = msgspec.json.Encoder(order="deterministic")
_decoder = cache(msgspec.json.Decoder)  # of a kind of record
R = TypeVar("R", bound=FrameStruct)


class FrameError(ValueError):
    """The bytes are not a frame that this version can read; the text gives the reason. They are damaged, unless the
    error is UnknownVersion.
    """


class UnknownVersion(FrameError):
    """An intact frame of a newer version: its reader stops, and an operator has to run that version."""


def encode(record: Record, *, without_content: bool = False) -> bytes | None:
    """The frame of a record; None for a tombstone. With `without_content`, the inline content of Accepted and
    Dispatched is left out; the caller stores it and passes it to `decode`.
    """
    if isinstance(record, Tombstone):
        return None
    content = b""
    if isinstance(record, Attempted):
        if record.headers:
            content = record.headers
            record = replace(record, headers=b"")
    elif isinstance(record, Accepted | Dispatched | QueueEntry) and isinstance(record.content, Inline):
        if isinstance(record, QueueEntry) or not without_content:
            content = record.content.data
        record = replace(record, content=_EMPTY)
    header = _encode_header(record)
    checksum = zlib.crc32(content, zlib.crc32(header))
    return b"".join((_PREFIX.pack(MAGIC, VERSION, len(header), len(content), checksum), header, content))


def open_frame(frame: bytes) -> tuple[int, bytes, bytes]:
    """Version, header and content of a frame, after the checks of its prefix and checksum. Raises FrameError."""
    try:
        magic, version, header_bytes, content_bytes, checksum = _PREFIX.unpack_from(frame)
    except error:
        raise FrameError(f"it ends after {len(frame)} bytes, inside the prefix") from None
    if magic != MAGIC:
        raise FrameError("it does not begin as a frame of eilpost")
    content_start = _PREFIX_BYTES + header_bytes
    header = frame[_PREFIX_BYTES:content_start]
    content = frame[content_start:]
    is_whole = len(frame) == content_start + content_bytes
    is_intact = is_whole and zlib.crc32(content, zlib.crc32(header)) == checksum
    if version > VERSION and is_intact:
        raise UnknownVersion(
            f"its version is {version}; this eilpost reads versions 1 and {VERSION}: a newer eilpost wrote it; run that"
            " version"
        )
    if not is_whole:
        raise FrameError(f"it should have {content_start + content_bytes} bytes and has {len(frame)}")
    if not is_intact or version not in (1, VERSION):
        raise FrameError("it is damaged (checksum)" if not is_intact else f"it is damaged (version {version})")
    return version, header, content


def header_error(reason: Exception) -> FrameError:
    """The error for a header that raised one of UNREADABLE."""
    return FrameError(f"its header cannot be read ({type(reason).__name__}: {reason})")


def decode(frame: bytes, kind: type[R], separate_content: bytes | None = None) -> R:
    """The record of a frame, with content that was stored separately. Raises only FrameError, also for a record of
    another kind.
    """
    version, header, content = open_frame(frame)
    if separate_content is not None:
        content = separate_content
    record: Any
    try:
        if version == VERSION:
            record = _decoder(kind).decode(header)
        else:
            record = msgspec.convert(frame_version_1.upgrade(msgspec.json.decode(header)), kind)
    except UNREADABLE as reason:
        raise header_error(reason) from reason
    if kind is Attempted:
        record = replace(record, headers=content) if content else record
    elif isinstance(record, Accepted | Dispatched | QueueEntry) and isinstance(record.content, Inline):
        record = replace(record, content=Inline(content))
    return cast("R", record)


def _encode_header(record: FrameStruct) -> bytes:
    try:
        return _ENCODER.encode(record)
    except UnicodeEncodeError:
        # A remote server's reply may contain lone surrogates, which JSON cannot encode; they become "?".
        return _ENCODER.encode(_replace_surrogates(msgspec.to_builtins(record)))


def _replace_surrogates(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case list() | tuple():
            return [_replace_surrogates(item) for item in value]
        case _:
            return value
