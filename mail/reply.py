"""SMTP reply value: code, enhanced status code and text.

Control characters in the text are replaced, so a text cannot inject a second reply. Source: RFC 5321 section 4.2,
RFC 2034, RFC 3463, RFC 7505.
"""

from __future__ import annotations

import re

from mail.frame_struct import FrameStruct

_ENHANCED = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})\Z")
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]+")


class Reply(FrameStruct, frozen=True):
    """A reply: `code` 200-599, `enhanced` like "5.1.1" or "" for none, `text` of one or more lines (LF)."""

    code: int
    enhanced: str
    text: str

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"reply code {self.code} is out of range")
        if self.enhanced:
            match = _ENHANCED.match(self.enhanced)
            # RFC 2034 section 4: the class must agree with the first digit of the code.
            if match is None or (self.code // 100 != int(match[1]) and self.code // 100 != 3):
                raise ValueError(f"enhanced code {self.enhanced!r} does not fit {self.code}")

    @property
    def is_positive(self) -> bool:
        return self.code < 400

    @property
    def is_temporary(self) -> bool:
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        return self.code >= 500

    @property
    def status(self) -> str:
        """The enhanced code, or X.0.0 of its class (RFC 3463 section 3.1)."""
        return self.enhanced or f"{self.code // 100}.0.0"

    def about(self, subject: str) -> Reply:
        """The same reply, with its text after `subject` and a colon."""
        return self.with_text(f"{subject}: {self.text}")

    def with_text(self, text: str) -> Reply:
        return Reply(self.code, self.enhanced, text)

    def to_bytes(self) -> bytes:
        """The reply lines with CRLF; control characters become spaces."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        lines = [_UNSAFE.sub(" ", line) for line in self.text.split("\n")]
        last = len(lines) - 1
        return "".join(
            f"{self.code}{' ' if number == last else '-'}{prefix}{line}\r\n" for number, line in enumerate(lines)
        ).encode("utf-8", "replace")

    def __str__(self) -> str:
        """One line: `550 5.1.1 No such user here`."""
        text = _UNSAFE.sub(" ", self.text.replace("\n", " "))
        return " ".join(part for part in (str(self.code), self.enhanced, text) if part)


# RFC 5321 section 5.1: this server is the best exchanger that is left. RFC 3463 X.4.6.
LOOPS_BACK = Reply(554, "5.4.6", "Mail for the recipient's domain loops back to this server")
