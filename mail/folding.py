"""Folding of header fields by octets (RFC 5322 sections 2.1.1 and 2.2.3). Pure."""

from __future__ import annotations

LINE_OCTETS_MAX = 998  # RFC 5322 section 2.1.1, without CRLF


def fold(line: bytes, octets_max: int = LINE_OCTETS_MAX) -> bytes:
    """A line of a header section without its CRLF, folded before blanks; a longer word is split between characters."""
    lines = []
    while len(line) > octets_max:
        end = max(line.rfind(b" ", 1, octets_max + 1), line.rfind(b"\t", 1, octets_max + 1))
        if line[: max(end, 0)].isspace() or end < 0:  # RFC 5322 section 3.2.2: no line of blanks only
            end = octets_max
            while line[end] & 0xC0 == 0x80:  # within a character of UTF-8
                end -= 1
            lines.append(line[:end])
            line = b" " + line[end:]
        else:
            lines.append(line[:end])
            line = line[end:]
    return b"\r\n".join([*lines, line])
