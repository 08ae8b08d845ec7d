"""A message between the final dot and the append, as the next hop will receive it. Pure.

Steps (`ingress/checks.py`) read it and return changes: header fields are prepended or removed. The content is never
parsed and written again, and a body is not copied before `finish`.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from ingress.content import ContentStart
from mail.envelope import Body
from mail.header_section import header_end, without_fields
from mail.message import Message


class Prepend(Struct, frozen=True):
    """Add complete header fields before the header section."""

    fields: bytes

    def __post_init__(self) -> None:
        if not self.fields.endswith(b"\r\n") or self.fields[0] in b" \t\r" or b"\r\n\r\n" in self.fields:
            raise ValueError(f"{self.fields!r} is not a sequence of header fields")


class Remove(Struct, frozen=True):
    """Remove the header fields of this name, which is in lower case; with `where`, those for which it is true of the
    octets after the colon, folded as they stand.
    """

    name: bytes
    where: Callable[[bytes], bool] | None = None


class Facts(Struct, frozen=True):
    """What the policy of the listener tells to every step."""

    hostname: str
    max_size: int
    max_hops: int


class Draft:
    """`message` is as received, without the changes; `content` has CRLF lines and is not dot-stuffed."""

    __slots__ = ("_added", "_content", "_empty_line", "_header", "_header_end", "_header_start", "facts", "message")

    def __init__(self, message: Message, content: bytearray, start: ContentStart, facts: Facts) -> None:
        self.message = message
        self.facts = facts
        self._content = content
        # The line of an mbox file becomes a header field, as in Postfix's smtpd; otherwise the header after it would be
        # body. `_added` stands before the rest of the content.
        self._added = [b"X-Mailbox-Line: "] if start is ContentStart.MAILBOX_LINE else []
        # An empty line stands before content without a header; otherwise a first line that begins with a space would
        # continue the field before it.
        self._empty_line = b"\r\n" if start is ContentStart.BODY else b""
        self._header_start = 0  # part of the content that is still header: all of it, or nothing after a removal
        self._header_end = 0 if start is ContentStart.BODY else -1  # -1: not looked for yet
        self._header: bytes | None = None

    @property
    def header(self) -> bytes:
        """The header section, with what earlier steps added and without what they removed."""
        if self._header is None:
            received = self._content[self._header_start : self._find_header_end()]
            self._header = b"".join((*self._added, received))
        return self._header

    @property
    def body(self) -> memoryview:
        """What follows the empty line after the header section."""
        end = self._find_header_end()
        return memoryview(self._content)[end if self._empty_line else end + 2 :]

    def apply(self, change: Prepend | Remove) -> None:
        if isinstance(change, Prepend):
            self._added.insert(0, change.fields)
            self._header = None
        else:
            self._header = without_fields(self.header, change.name, change.where)
            self._added = [self._header]
            self._header_start = self._find_header_end()

    def finish(self) -> tuple[Message, bytes]:
        """The message with its size and BODY as they are now, and its content."""
        self._header = None
        rest = memoryview(self._content)[self._header_start :]
        content = b"".join((*self._added, self._empty_line, rest))
        envelope = self.message.envelope
        if envelope.body is Body.SEVEN_BIT and not content.isascii():
            # Declare 8BITMIME for 8-bit content even when the client did not (RFC 6152 section 3).
            envelope = replace(envelope, body=Body.EIGHT_BIT)
        return replace(self.message, size_bytes=len(content), envelope=envelope), content

    def _find_header_end(self) -> int:
        if self._header_end < 0:
            self._header_end = header_end(self._content)
        return self._header_end
