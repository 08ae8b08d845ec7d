"""Delivery status notifications (DSNs) about failed recipients. Pure.

RFC 3464 inside multipart/report (RFC 6522), with the fields of RFC 3461 and, where an address or the message needs
them, the internationalised forms of RFC 6533. Control characters are removed from foreign values (replies, ENVID,
ORCPT), so that none can start a header field or a MIME part.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from types import MappingProxyType

from mail.address import Address
from mail.envelope import Body, Envelope, Recipient
from mail.folding import fold
from mail.header_section import header_section
from mail.message import Inline, Message, QueueId
from mail.record import Accepted
from mail.reply import Reply

NOTHING_UNLISTED: Mapping[Address, int] = MappingProxyType({})
QUOTED_BYTES_MAX = 32 << 10  # of the original message's header

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_MESSAGE_ID = re.compile(rb"^message-id:(?:[ \t]|\r?\n[ \t])*(<[!-;=?-~]{1,900}>)", re.IGNORECASE | re.MULTILINE)
_HEX_PAIR = re.compile(r"\+([0-9A-F]{2})")


@dataclass(frozen=True, slots=True)
class FailedRecipient:
    """A recipient that a DSN reports. `remote`: the server that sent `reply`; None for a local reply."""

    recipient: Recipient
    reply: Reply
    remote: str | None = None


def failure_dsn(
    original: Message,
    failures: Sequence[FailedRecipient],
    headers: bytes,
    hostname: str,
    queue_id: QueueId,
    now: datetime,
    unlisted: Mapping[Address, int] = NOTHING_UNLISTED,
) -> Accepted:
    """The DSN as a new message from the null reverse-path to the original's sender.

    `headers`: the first bytes of the original's content; may be truncated or empty. `unlisted`: the number of further
    failed recipients by the alias to which the sender wrote. They have no fields of their own in the machine-readable
    part: the alias itself may be a mailbox to which the message was delivered.
    """
    sender = original.envelope.reverse_path
    assert sender is not None, "RFC 5321 section 4.5.5: no DSN about a DSN"
    # Folded, because strict servers refuse longer lines, and a refused DSN is lost.
    quoted = b"\r\n".join(map(fold, _complete_lines(header_section(headers, QUOTED_BYTES_MAX)).split(b"\r\n")))
    utf8 = (
        not sender.local.isascii()
        or not all(failure.recipient.address.local.isascii() for failure in failures)
        or (original.envelope.smtputf8 and not quoted.isascii())
    )
    content = _render(original, sender, failures, quoted, hostname, queue_id, now, utf8, unlisted)
    envelope = Envelope(
        reverse_path=None,  # RFC 3464 section 2
        recipients=(Recipient(sender),),
        body=Body.SEVEN_BIT if content.isascii() else Body.EIGHT_BIT,
        smtputf8=not sender.local.isascii(),  # its own header is ASCII then; the parts need 8BITMIME only
    )
    message = Message(queue_id, original.tenant, now, envelope, len(content))
    return Accepted(message, Inline(content))


def _render(
    original: Message,
    sender: Address,
    failures: Sequence[FailedRecipient],
    quoted: bytes,
    hostname: str,
    queue_id: QueueId,
    now: datetime,
    utf8: bool,
    unlisted: Mapping[Address, int],
) -> bytes:
    boundary = f"=_{queue_id}_{original.queue_id[-8:]}"
    head = [
        f"Date: {format_datetime(now)}",
        f"From: Mail delivery at {_atom(hostname)} <MAILER-DAEMON@{hostname}>",
        f"To: <{sender.downgraded}>",
        "Subject: Your message could not be delivered",
        f"Message-ID: <{queue_id}@{hostname}>",
        "Auto-Submitted: auto-replied",  # RFC 3834 section 5
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status; boundary="{boundary}"',
    ]
    original_id = _MESSAGE_ID.search(quoted)
    if original_id is not None:
        reference = original_id[1].decode("ascii")
        head += [f"In-Reply-To: {reference}", f"References: {reference}"]
    status_type, headers_type = (
        ("message/global-delivery-status", "message/global-headers")  # RFC 6533 sections 4 and 6
        if utf8
        else ("message/delivery-status", "text/rfc822-headers")  # RFC 3464 section 2, RFC 6522 section 4
    )
    parts = [
        ("text/plain; charset=utf-8", _human_readable_part(original, failures, hostname, unlisted)),
        (status_type, _delivery_status_part(original, failures, hostname, now, utf8)),
    ]
    if quoted:
        parts.append((headers_type, quoted))
    if not all(body.isascii() for _, body in parts):
        head.append("Content-Transfer-Encoding: 8bit")  # RFC 2045 section 6.4: the same as the parts
    out = ["\r\n".join(head).encode(), b"\r\n\r\n"]
    for content_type, body in parts:
        encoding = "7bit" if body.isascii() else "8bit"
        out.append(
            f"--{boundary}\r\nContent-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode()
        )
        out.append(body)
        out.append(b"\r\n")
    out.append(f"--{boundary}--\r\n".encode())
    return b"".join(out)


def _human_readable_part(
    original: Message, failures: Sequence[FailedRecipient], hostname: str, unlisted: Mapping[Address, int]
) -> bytes:
    lines = [
        f"This is an automatic message from the mail server {hostname}.",
        "",
        "We are sorry: your message could not be delivered to the recipients below.",
        "The server has stopped trying. The reason follows each address.",
        "",
    ]
    for failure in failures:
        final, original_address = failure.recipient.address, failure.recipient.original
        lines.append(f"<{final}>" if final == original_address else f"<{final}> (you wrote to <{original_address}>)")
        prefix = f"The server {_host(failure.remote)} replied: " if failure.remote else "Reason: "
        lines += _wrap(f"{prefix}{_without_control(str(failure.reply))}")
        lines.append("")
    for alias, count in unlisted.items():
        lines += [f"<{alias}>", *_wrap(f"{count} more recipients behind this address failed."), ""]
    lines += [
        f"{'Other recipients' if unlisted else 'Recipients that are not listed'} are not affected."
        " If an address contains a",
        "typing error, please correct it and send the message again. If you need",
        "help, forward this report to your mail administrator.",
        "",
        f"Message received: {format_datetime(original.received)}",
        f"Queue id: {original.queue_id}",
    ]
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n"


def _delivery_status_part(
    original: Message, failures: Sequence[FailedRecipient], hostname: str, now: datetime, utf8: bool
) -> bytes:
    """RFC 3464 section 2.1: the per-message fields, then one block per recipient."""
    lines: list[str] = []
    if original.envelope.envid is not None:
        lines.append(_header_field("Original-Envelope-Id", original.envelope.envid))
    lines += [
        f"Reporting-MTA: dns; {hostname}",
        f"X-Eilpost-Queue-Id: {original.queue_id}",
        f"Arrival-Date: {format_datetime(original.received)}",
    ]
    for failure in failures:
        recipient, reply = failure.recipient, failure.reply
        lines.append("")
        if recipient.orcpt is not None:  # RFC 3461 section 6.3 (d): else the field MUST NOT appear
            lines.append(_header_field("Original-Recipient", original_recipient(recipient.orcpt)))
        lines.append(_header_field("Final-Recipient", typed_address(recipient.address)))
        lines.append("Action: failed")
        lines.append(f"Status: {reply.status}")
        if failure.remote is not None:
            # RFC 3464 section 2.3.6: type smtp is for replies of an SMTP server only.
            lines.append(_header_field("Remote-MTA", f"dns; {_host(failure.remote)}"))
            lines.append(_header_field("Diagnostic-Code", f"smtp; {reply}"))
        else:
            lines.append(_header_field("Diagnostic-Code", f"X-Eilpost; {reply}"))
        lines.append(f"Last-Attempt-Date: {format_datetime(now)}")
    encoding = "utf-8" if utf8 else "ascii"
    return b"".join(fold(line.encode(encoding, "replace")) + b"\r\n" for line in lines)


def typed_address(address: Address) -> str:
    """An address with its type: RFC 3464 section 2.3.2, RFC 6533 section 3."""
    address = address.downgraded
    return f"{'rfc822' if address.is_ascii else 'utf-8'}; {address}"


def original_recipient(orcpt: str) -> str:
    """The value of Original-Recipient: ORCPT (RFC 3461 section 6.3 (d)) with its xtext decoded (section 4)."""
    kind, semicolon, value = orcpt.partition(";")
    if not semicolon:
        return f"rfc822; {_without_control(orcpt)}"
    decoded = _HEX_PAIR.sub(lambda match: chr(int(match[1], 16)), value)
    return f"{_without_control(kind).strip()}; {_without_control(decoded).strip()}"


def _header_field(name: str, value: str) -> str:
    return f"{name}: {_without_control(value)}"


def _wrap(text: str, width: int = 76) -> list[str]:
    """Lines of at most `width` characters, broken at spaces; a longer word is split."""
    return textwrap.wrap(text, width, break_on_hyphens=False, replace_whitespace=False)


def _without_control(text: str) -> str:
    return _CONTROL.sub(" ", text)


def _atom(text: str) -> str:
    """`text` in the characters allowed in an unquoted display name, and dots, which every parser accepts."""
    return re.sub(r"[^A-Za-z0-9.\-]", "-", text)


def _host(remote: str) -> str:
    """The host name of "mx.example.test[192.0.2.1]:25"."""
    return _without_control(remote).partition("[")[0] or _without_control(remote)


def _complete_lines(text: bytes) -> bytes:
    """The lines that end in CRLF."""
    lines, line_end, _ = text.rpartition(b"\r\n")
    return lines + line_end
