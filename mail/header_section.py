"""Header section of a message (RFC 5322 section 2.1): the bytes before the first empty line. Pure."""

from __future__ import annotations

import re
from typing import TypeVar

AnyBytes = TypeVar("AnyBytes", bytes, bytearray)


def header_section(content: AnyBytes, bytes_max: int) -> AnyBytes:
    """The header section with its last CRLF, cut off after `bytes_max` bytes. `content` has CRLF lines."""
    if content.startswith(b"\r\n"):
        return content[:0]
    end = content.find(b"\r\n\r\n", 0, bytes_max)
    return content[:bytes_max] if end < 0 else content[: end + 2]


def without_field(content: bytes, name: bytes) -> bytes:
    """The content without the header fields of this name, which is in lower case. `content` has CRLF lines."""
    header = header_section(content, len(content))
    if name not in header.lower():
        return content
    # RFC 5322 section 4.5: blanks before the colon; section 2.2.3: folded lines
    field = re.compile(rb"^" + re.escape(name) + rb"[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*", re.IGNORECASE | re.MULTILINE)
    return field.sub(b"", header) + content[len(header) :]
