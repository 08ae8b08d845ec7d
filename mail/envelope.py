"""SMTP envelope: reverse-path, recipients and their parameters (RFC 5321 section 2.3.1). Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mail.address import Address


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


@dataclass(frozen=True, slots=True)
class Recipient:
    """One forward-path. `address` is the current address; `original` the address from RCPT, before alias expansion."""

    address: Address
    original: Address
    notify: frozenset[Notify] | None = None  # None: the sender gave no NOTIFY
    orcpt: str | None = None  # RFC 3461 section 4.2, "rfc822;user@example.test", as given


@dataclass(frozen=True, slots=True)
class Envelope:
    """The parameters of a mail transaction. A `reverse_path` of None is the null reverse-path, `<>`."""

    reverse_path: Address | None
    recipients: tuple[Recipient, ...]
    body: Body = Body.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret | None = None
    envid: str | None = None  # RFC 3461 section 4.4, xtext decoded
