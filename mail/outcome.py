"""What became of one recipient in one attempt: delivered, deferred or failed. Pure values.

Unknown means deferred: only a 5xx from the next hop, or a permanent fact, is `Failed`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mail.address import Address
from mail.reply import Reply


@dataclass(frozen=True, slots=True)
class Delivered:
    """The next hop has taken responsibility (`reply` 2xx). `remote` is "mx.example.test[192.0.2.1]:25", or None for
    a mailbox.
    """

    recipient: Address
    reply: Reply
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not now (`reply` 4xx). `remote` is None when the reply is our own words, not the next hop's."""

    recipient: Address
    reply: Reply
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Never (`reply` 5xx). `remote` as in Deferred."""

    recipient: Address
    reply: Reply
    remote: str | None = None


Outcome = Delivered | Deferred | Failed
