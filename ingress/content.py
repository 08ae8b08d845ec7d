"""Normalisation of message data: line endings and transparent dots. Pure.

The result has no CR without LF and no LF without CR, so no later reader finds an end of data that ingress did not
(SMTP smuggling). An LF alone becomes CRLF, as with Postfix's `smtpd_forbid_bare_newline = normalize` (its default),
further CRs before a CRLF are removed, as by its smtpd, and another CR alone becomes a space, as with its
`cleanup_replace_stray_cr_lf`. Such mail is not refused because old scripts send it far more often than attackers.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from mail.header_section import AnyBytes

_LONE_LF = re.compile(rb"\n(?<!\r\n)")
_STRAY_CR = re.compile(rb"\r(?!\n(?!\.))")  # not followed by LF, or followed by LF and a transparent dot
_HEADER_CHECK_BYTES = 1024  # octets examined to decide whether content begins with a header
_HEADER_LIKE = re.compile(rb"[!-9;-~]+[ \t]*:")  # RFC 5322 section 3.6.8, and section 4.5 for blanks before the colon
_MAILBOX_LINE = re.compile(rb">*From [^\n]*\n(?=[!-9;-~]+[ \t]*:|\r?\n)", re.IGNORECASE)
_SURPLUS_CRS = (8, 4, 2, 1)  # up to 15 are removed, in time that is linear in the size


def normalize(data: AnyBytes) -> AnyBytes:
    """Normalise line endings, then remove transparent dots (RFC 5321 section 4.5.2)."""
    if data.startswith(b"."):
        data = data[1:]
    if _STRAY_CR.search(data) is None and _LONE_LF.search(data) is None:
        return data
    lines = data.count(b"\r\n")
    if lines != data.count(b"\n") or lines != data.count(b"\r"):
        data = data.replace(b"\r\n", b"\n")
        for count in _SURPLUS_CRS:
            data = data.replace(b"\r" * count + b"\n", b"\n")
        data = data.replace(b"\r", b" ").replace(b"\n", b"\r\n")
    return data.replace(b"\r\n.", b"\r\n")


class ContentStart(Enum):
    """What message data begins with."""

    HEADER = auto()  # a header field, or the empty line after an empty header section
    MAILBOX_LINE = auto()  # the separator line of an mbox file, then a header: `git format-patch` writes it
    BODY = auto()  # content without a header section


def content_start(data: bytes | bytearray) -> ContentStart:
    """`data` is still dot-stuffed."""
    if _MAILBOX_LINE.match(data, 0, _HEADER_CHECK_BYTES):
        return ContentStart.MAILBOX_LINE
    start = 1 if data.startswith(b".") else 0
    if data.startswith((b"\r\n", b"\n"), start) or _HEADER_LIKE.match(data, start, _HEADER_CHECK_BYTES):
        return ContentStart.HEADER
    return ContentStart.BODY
