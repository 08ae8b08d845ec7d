"""Checks and stamps between the final dot and the append. Pure.

A listener has one ordered list of these steps (`Policy.steps`). A check refuses the message; a stamp returns header
bytes, which are prepended before those of earlier stamps. The content is never parsed and written again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ingress import replies
from ingress.content import ContentStart
from ingress.received import count_hops, received_field
from mail.envelope import Body
from mail.message import Message
from mail.reply import Reply


class Facts(Struct, frozen=True):
    """Input of a step besides the message and its content."""

    hostname: str
    max_size: int
    max_hops: int
    start: ContentStart


# `(message, content, facts)`: a Reply refuses the message, bytes are prepended. The content has CRLF lines; it and the
# size of the message are as received, without the stamps.
Step = Callable[[Message, bytearray, Facts], Reply | bytes | None]


def check_size(message: Message, _content: bytearray, facts: Facts) -> Reply | None:
    return replies.TOO_LARGE if message.size_bytes > facts.max_size else None


def check_hops(_message: Message, content: bytearray, facts: Facts) -> Reply | None:
    has_header = facts.start is not ContentStart.BODY
    return replies.TOO_MANY_HOPS if has_header and count_hops(content) > facts.max_hops else None


def begin_content(_message: Message, _content: bytearray, facts: Facts) -> bytes:
    """The line of an mbox file becomes a header field, as in Postfix's smtpd; otherwise the header after it would be
    body. An empty line stands before content without a header; otherwise a first line that begins with a space would
    continue the Received field.
    """
    return {ContentStart.HEADER: b"", ContentStart.MAILBOX_LINE: b"X-Mailbox-Line: ", ContentStart.BODY: b"\r\n"}[
        facts.start
    ]


def add_received(message: Message, _content: bytearray, facts: Facts) -> bytes:
    assert message.client is not None
    envelope = message.envelope
    return received_field(
        client=message.client,
        hostname=facts.hostname,
        queue_id=message.queue_id,
        recipient=envelope.recipients[0].original if len(envelope.recipients) == 1 else None,
        now=message.received,
        smtputf8=envelope.smtputf8,
    )


MX_STEPS: tuple[Step, ...] = (check_size, check_hops, begin_content, add_received)


def apply(steps: Sequence[Step], message: Message, content: bytearray, facts: Facts) -> tuple[Message, bytes] | Reply:
    """The message and its content with the stamps, or the reply of the first check that refuses it."""
    parts: list[bytes | bytearray] = [content]
    for step in steps:
        result = step(message, content, facts)
        if isinstance(result, bytes):
            parts.insert(0, result)
        elif result is not None:
            return result
    stamped = b"".join(parts)
    envelope = message.envelope
    if envelope.body is Body.SEVEN_BIT and not stamped.isascii():
        # Declare 8BITMIME for 8-bit content even when the client did not (RFC 6152 section 3).
        envelope = replace(envelope, body=Body.EIGHT_BIT)
    return replace(message, size_bytes=len(stamped), envelope=envelope), stamped
