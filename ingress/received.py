"""The trace line ingress puts before a message, and the count of those already there. Pure.

It never changes what a client sent: on the MX port nothing is added but this line (missing Date and Message-ID are for
submission to mend, RFC 6409 section 8). Source: RFC 5321 section 4.4, RFC 3848, RFC 6531 section 4.3.
"""

from __future__ import annotations

import re
from datetime import datetime

from mail.address import Address
from mail.message import Client, QueueId

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# What a HELO name may not bring into a header: comments, quotes, anything invisible.
_UNSAFE_IN_HELO = re.compile(r"[^!#-'*-\[\]-~]")
_RECEIVED_FIELD = re.compile(rb"\r\nreceived[ \t]*:")


def with_protocol(*, extended: bool, smtputf8: bool, tls: bool = False, authenticated: bool = False) -> str:
    """The "with" keyword: SMTP, ESMTP, ESMTPSA ... (RFC 3848), UTF8SMTP ... (RFC 6531 section 4.3)."""
    if smtputf8:
        return "UTF8SMTP" + ("S" if tls else "") + ("A" if authenticated else "")
    if not extended:
        return "SMTP"
    return "ESMTP" + ("S" if tls else "") + ("A" if authenticated else "")


def received_field(
    *,
    client: Client,
    hostname: str,
    queue_id: QueueId,
    recipient: Address | None,
    now: datetime,
    smtputf8: bool = False,
) -> bytes:
    """The Received line, folded, CRLF at its end. `recipient` is the only one, or None when there are several: RFC 5321
    section 7.2 keeps their names from each other. `now` is aware, UTC.
    """
    literal = f"[IPv6:{client.ip}]" if ":" in client.ip else f"[{client.ip}]"
    helo = _UNSAFE_IN_HELO.sub("?", client.helo) or "unknown"
    for_clause = ""
    if recipient is not None and (smtputf8 or recipient.is_ascii):
        for_clause = f"\r\n\tfor <{recipient}>"
    date = (
        f"{_DAYS[now.weekday()]}, {now.day} {_MONTHS[now.month - 1]} {now.year} "
        f"{now.hour:02d}:{now.minute:02d}:{now.second:02d} +0000"
    )
    return (
        f"Received: from {helo} ({literal})\r\n\tby {hostname} (eilpost) with {client.protocol} id {queue_id}"
        f"{for_clause};\r\n\t{date}\r\n"
    ).encode()


def count_hops(header: bytes) -> int:
    """How many Received lines a header section has (RFC 5321 section 6.3 counts them to find loops). A blank before the
    colon is an old way to write one (RFC 5322 section 4.5).
    """
    return len(_RECEIVED_FIELD.findall(b"\r\n" + header.lower()))
