"""The Received field that ingress prepends, and the hop count. Pure.

Nothing else is added on the MX port: adding Date and Message-ID is left to submission (RFC 6409 section 8).
Source: RFC 5321 section 4.4, RFC 3848, RFC 6531 section 4.3.
"""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import format_datetime

from mail.address import Address
from mail.message import Client, QueueId

# What a reader of the field could take for its structure: comments, quotes, addresses, the end of the clauses before
# the date, control and other invisible characters. Postfix's smtpd replaces nearly the same set.
_UNSAFE_IN_HELO = re.compile(r"[^!#-'*+\--:=?A-\[\]-~]")
_HEADER_BYTES_MAX = 1 << 20
_RECEIVED_FIELD = re.compile(rb"\r\nreceived[ \t]*:")


def with_protocol(*, extended: bool, smtputf8: bool, tls: bool = False, authenticated: bool = False) -> str:
    """The "with" keyword: SMTP, ESMTP, ESMTPSA ... (RFC 3848), UTF8SMTP ... (RFC 6531 section 4.3)."""
    if not extended:
        return "SMTP"
    return ("UTF8SMTP" if smtputf8 else "ESMTP") + ("S" if tls else "") + ("A" if authenticated else "")


def received_field(
    *,
    client: Client,
    hostname: str,
    queue_id: QueueId,
    recipient: Address | None,
    now: datetime,
) -> bytes:
    """The Received field, folded, ending in CRLF. `recipient` is None when there are several, so that recipients do not
    see each other (RFC 5321 section 7.2). `now` is aware, UTC.
    """
    literal = f"[IPv6:{client.ip}]" if ":" in client.ip else f"[{client.ip}]"
    helo = _UNSAFE_IN_HELO.sub("?", client.helo) or "unknown"
    for_clause = ""
    # Only in ASCII: otherwise this line would make the message require SMTPUTF8 of every next hop.
    if recipient is not None and recipient.local.isascii():
        for_clause = f"\r\n\tfor <{recipient.downgraded}>"
    return (
        f"Received: from {helo} ({literal})\r\n\tby {hostname} (eilpost) with {client.protocol} id {queue_id}"
        f"{for_clause};\r\n\t{format_datetime(now)}\r\n"
    ).encode()


def count_hops(header: bytes) -> int:
    """Number of Received fields in a header section, to detect loops (RFC 5321 section 6.3). Blanks before the colon
    are obsolete syntax (RFC 5322 section 4.5).
    """
    return len(_RECEIVED_FIELD.findall(b"\r\n" + header[:_HEADER_BYTES_MAX].lower()))
