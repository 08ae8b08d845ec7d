"""The envelope: who sends, who receives, and under which terms (RFC 5321 section 2.3.1).

Values only.
"""

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
    """A NOTIFY keyword (RFC 3461 section 4.1). NEVER stands alone."""

    NEVER = "NEVER"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


class Ret(StrEnum):
    """What a failure report returns of the message (RFC 3461 section 4.3)."""

    FULL = "FULL"
    HEADERS = "HDRS"


@dataclass(frozen=True, slots=True)
class Recipient:
    """One forward-path. `address` is where it goes now; `original` what the client said, before aliases."""

    address: Address
    original: Address
    notify: frozenset[Notify] | None = None  # None: the sender gave no NOTIFY
    orcpt: str | None = None  # RFC 3461 section 4.2, "rfc822;user@example.test", as given


@dataclass(frozen=True, slots=True)
class Envelope:
    """A mail transaction's terms. A `reverse_path` of None is the null one, `<>`."""

    reverse_path: Address | None
    recipients: tuple[Recipient, ...]
    body: Body = Body.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret | None = None
    envid: str | None = None  # RFC 3461 section 4.4, xtext decoded
