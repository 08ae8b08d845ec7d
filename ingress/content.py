"""Content as it stood on the wire to content as it is stored. Pure bytes to bytes.

Promises that what it returns has no CR without LF and no LF without CR, so no reader after us can find an end of
data that we did not (SMTP smuggling). Line ends are mended rather than refused: an LF alone becomes CRLF, as Postfix's
`smtpd_forbid_bare_newline = normalize` (its default) does, and a CR alone becomes a space, as its
`cleanup_replace_stray_cr_lf` does; senders of such mail are old scripts far more often than attackers. Well-formed
content passes untouched but for its dots.
"""

from __future__ import annotations

import re

_STRAY_CR = re.compile(rb"\r(?!\n(?!\.))")  # not the end of a line, or before a transparent dot
_HEADER_LIKE = re.compile(rb"[!-9;-~]+[ \t]*:")  # RFC 5322 section 3.6.8, and section 4.5 for the blanks
HEADER_MAX = 1 << 20  # beyond this the end of the header is not looked for


def normalize(data: bytes) -> bytes:
    """Mend line ends, then take off the transparent dots (RFC 5321 section 4.5.2)."""
    if data.count(b"\r") == data.count(b"\n") and _STRAY_CR.search(data) is None:
        return data  # each CR has an LF behind it, and there are no other LFs
    lines = data.count(b"\r\n")
    if lines != data.count(b"\n") or lines != data.count(b"\r"):
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\n", b"\r\n")
    return data.replace(b"\r\n.", b"\r\n")


def begins_with_header(first_octets: bytes) -> bool:
    """Whether a header field, or the empty line after none, comes first. `opening`: the first bytes, dots stuffed.

    Otherwise a line of ours put before it would swallow it: a first line that begins with a space would continue our
    Received line.
    """
    if first_octets.startswith(b"."):
        first_octets = first_octets[1:]
    return _HEADER_LIKE.match(first_octets) is not None or first_octets.startswith((b"\r\n", b"\n"))


def header_section(content: bytes) -> bytes:
    """The header section of clean content."""
    end = content.find(b"\r\n\r\n", 0, HEADER_MAX)
    return content[: end + 2] if end >= 0 else content[:HEADER_MAX]
