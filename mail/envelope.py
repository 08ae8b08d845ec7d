"""SMTP envelope: reverse-path, recipients and their parameters (RFC 5321 section 2.3.1). Pure values."""

from __future__ import annotations

from enum import StrEnum

from msgspec.structs import replace

from mail.address import Address
from mail.frame_struct import FrameStruct


class Body(StrEnum):
    """The BODY parameter (RFC 6152; BINARYMIME is RFC 3030)."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT = "8BITMIME"
    BINARY = "BINARYMIME"


class Notify(StrEnum):
    """A NOTIFY keyword (RFC 3461 section 4.1). NEVER excludes the others."""

    NEVER = "NEVER"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


class Ret(StrEnum):
    """The part of the message that a failure DSN returns (RFC 3461 section 4.3)."""

    FULL = "FULL"
    HEADERS = "HDRS"


class Recipient(FrameStruct, frozen=True):
    """One forward-path. `address` is the current address; `replaced` the address from RCPT, if it is another one."""

    address: Address
    replaced: Address | None = None
    notify: frozenset[Notify] | None = None  # None: the sender gave no NOTIFY
    orcpt: str | None = None  # RFC 3461 section 4.2, "rfc822;user@example.test", as given

    @property
    def original(self) -> Address:
        """The address from RCPT, before alias expansion."""
        return self.replaced or self.address

    def readdressed(self, address: Address) -> Recipient:
        """The same recipient after alias expansion to `address`."""
        return replace(self, address=address, replaced=None if address == self.original else self.original)


class Envelope(FrameStruct, frozen=True):
    """The parameters of a mail transaction. A `reverse_path` of None is the null reverse-path, `<>`."""

    reverse_path: Address | None
    recipients: tuple[Recipient, ...]
    body: Body = Body.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret | None = None
    envid: str | None = None  # RFC 3461 section 4.4, xtext decoded
