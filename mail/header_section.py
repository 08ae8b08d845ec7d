"""Header section of a message (RFC 5322 section 2.1): the bytes before the first empty line. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

AnyBytes = TypeVar("AnyBytes", bytes, bytearray)


def header_section(content: AnyBytes, bytes_max: int) -> AnyBytes:
    """The header section with its last CRLF, cut off after `bytes_max` bytes. `content` has CRLF lines."""
    return content[: header_end(content, bytes_max)]


def header_end(content: bytes | bytearray, bytes_max: int | None = None) -> int:
    """The length of the header section."""
    if content.startswith(b"\r\n"):
        return 0
    end = content.find(b"\r\n\r\n", 0, bytes_max)
    return min(len(content), bytes_max or len(content)) if end < 0 else end + 2


def without_field(content: bytes, name: bytes) -> bytes:
    """The content without the header fields of this name, which is in lower case. `content` has CRLF lines."""
    header = content[: header_end(content)]
    kept = without_fields(header, name)
    return content if kept is header else kept + content[len(header) :]


def without_fields(header: bytes, name: bytes, where: Callable[[bytes], bool] | None = None) -> bytes:
    """The header section without the fields of this name, which is in lower case; with `where`, without those for which
    it is true of the octets after the colon.
    """
    if name not in header.lower():
        return header
    # RFC 5322 section 4.5: blanks before the colon; section 2.2.3: folded lines
    field = re.compile(rb"^" + re.escape(name) + rb"[ \t]*:([^\n]*\n(?:[ \t][^\n]*\n)*)", re.IGNORECASE | re.MULTILINE)
    return field.sub(lambda found: found[0] if where is not None and not where(found[1]) else b"", header)
