"""Content as it stood on the wire to content as it is stored. Pure bytes to bytes.

Promises that what it returns has no CR without LF and no LF without CR, so no reader after us can find an end of
data that we did not (SMTP smuggling). Line ends are mended rather than refused: an LF alone becomes CRLF, as Postfix's
`smtpd_forbid_bare_newline = normalize` (its default) does, and a CR alone becomes a space, as its
`cleanup_replace_stray_cr_lf` does; senders of such mail are old scripts far more often than attackers. Well-formed
content passes untouched but for its dots. Next: `ingress/received.py`.
"""

from __future__ import annotations

import re

_ODD_CR = re.compile(rb"\r(?!\n(?!\.))")  # not the end of a line, or before a transparent dot
_HEADER_LIKE = re.compile(rb"[!-9;-~]+[ \t]*:")  # RFC 5322 section 3.6.8, and section 4.5 for the blanks
HEADER_MAX = 1 << 20  # beyond this the end of the header is not looked for


def clean(wire: bytes) -> bytes:
    """Mend line ends, then take off the transparent dots (RFC 5321 section 4.5.2)."""
    if wire.count(b"\r") == wire.count(b"\n") and _ODD_CR.search(wire) is None:
        return wire  # each CR has an LF behind it, and there are no other LFs
    lines = wire.count(b"\r\n")
    if lines != wire.count(b"\n") or lines != wire.count(b"\r"):
        wire = wire.replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\n", b"\r\n")
    return wire.replace(b"\r\n.", b"\r\n")


def begins_with_header(opening: bytes) -> bool:
    """Whether a header field, or the empty line after none, comes first. `opening`: the first bytes, dots stuffed.

    Otherwise a line of ours put before it would swallow it: a first line that begins with a space would continue our
    Received line.
    """
    if opening.startswith(b"."):
        opening = opening[1:]
    return _HEADER_LIKE.match(opening) is not None or opening.startswith((b"\r\n", b"\n"))


def header_of(content: bytes) -> bytes:
    """The header section of clean content."""
    end = content.find(b"\r\n\r\n", 0, HEADER_MAX)
    return content[: end + 2] if end >= 0 else content[:HEADER_MAX]
