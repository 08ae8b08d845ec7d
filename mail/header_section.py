"""Header section of a message (RFC 5322 section 2.1): the bytes before the first empty line. Pure."""

from __future__ import annotations


def header_section(content: bytes, bytes_max: int) -> bytes:
    """The header section with its last CRLF, cut off after `bytes_max` bytes. `content` has CRLF lines."""
    if content.startswith(b"\r\n"):
        return b""
    end = content.find(b"\r\n\r\n", 0, bytes_max)
    return content[:bytes_max] if end < 0 else content[: end + 2]
