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

# Not allowed in a header: comments, quotes, control and other invisible characters.
_UNSAFE_IN_HELO = re.compile(r"[^!#-'*-\[\]-~]")
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
    smtputf8: bool = False,
) -> bytes:
    """The Received field, folded, ending in CRLF. `recipient` is None when there are several, so that recipients do not
    see each other (RFC 5321 section 7.2). `now` is aware, UTC.
    """
    literal = f"[IPv6:{client.ip}]" if ":" in client.ip else f"[{client.ip}]"
    helo = _UNSAFE_IN_HELO.sub("?", client.helo) or "unknown"
    for_clause = ""
    if recipient is not None and (smtputf8 or recipient.is_ascii):
        for_clause = f"\r\n\tfor <{recipient}>"
    return (
        f"Received: from {helo} ({literal})\r\n\tby {hostname} (eilpost) with {client.protocol} id {queue_id}"
        f"{for_clause};\r\n\t{format_datetime(now)}\r\n"
    ).encode()


def count_hops(header: bytes) -> int:
    """Number of Received fields in a header section, to detect loops (RFC 5321 section 6.3). Blanks before the colon
    are obsolete syntax (RFC 5322 section 4.5).
    """
    return len(_RECEIVED_FIELD.findall(b"\r\n" + header[:_HEADER_BYTES_MAX].lower()))
