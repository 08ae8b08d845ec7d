"""Message of a completed transaction: content with its Received field, envelope, checks of the content."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ingress import replies
from ingress.content import begins_with_header, normalize
from ingress.esmtp import MailFrom
from ingress.framer import Framer
from ingress.listener import Listener
from ingress.received import count_hops, received_field
from ingress.tenant import tenant_of
from mail.envelope import Body, Envelope, Recipient
from mail.message import Client, Message, QueueId
from mail.reply import Reply

_HEADER_CHECK_BYTES = 1024  # octets examined to decide whether content begins with a header


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    message: Message
    content: bytes
    content_bytes: int  # as received: without the added Received field

    def check(self, listener: Listener) -> Reply | None:
        if self.content_bytes > listener.max_size:
            return replies.TOO_LARGE
        if count_hops(self.content) - 1 > listener.max_hops:
            return replies.TOO_MANY_HOPS
        return None


def take_message(
    framer: Framer,
    listener: Listener,
    *,
    mail: MailFrom,
    recipients: tuple[Recipient, ...],
    client: Client,
    queue_id: QueueId,
    now: datetime,
) -> ReceivedMessage:
    """Take the complete data out of `framer`. `now` is aware, UTC."""
    trace = received_field(
        client=client,
        hostname=listener.hostname,
        queue_id=queue_id,
        recipient=recipients[0].original if len(recipients) == 1 else None,
        now=now,
        smtputf8=mail.smtputf8,
    )
    if not begins_with_header(framer.peek_data(_HEADER_CHECK_BYTES)):
        trace += b"\r\n"  # no header: everything after this line is body
    content = normalize(framer.take_data(trace))
    # Declare 8BITMIME for 8-bit content even when the client did not (RFC 6152 section 3).
    body = mail.body if mail.body is not Body.SEVEN_BIT or content.isascii() else Body.EIGHT_BIT
    message = Message(
        queue_id=queue_id,
        tenant=tenant_of(mail.reverse_path, recipients, listener.directory.snapshot),
        received=now,
        envelope=Envelope(mail.reverse_path, recipients, body, mail.smtputf8),
        size_bytes=len(content),
        client=client,
    )
    return ReceivedMessage(message, content, len(content) - len(trace))
