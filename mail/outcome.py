"""Outcome of one attempt for one recipient: delivered, deferred or failed. Pure values.

An unknown result is deferred: only a 5xx reply of the next hop or a permanent condition is `Failed`.
"""

from __future__ import annotations

from mail.address import Address
from mail.frame_struct import FrameStruct
from mail.reply import Reply


class Delivered(FrameStruct, frozen=True, tag="delivered"):
    """The next hop accepted responsibility (`reply` 2xx). `remote` is "mx.example.test[192.0.2.1]:25", or None for a
    mailbox.
    """

    recipient: Address
    reply: Reply
    remote: str | None = None


class Deferred(FrameStruct, frozen=True, tag="deferred"):
    """Temporary failure (`reply` 4xx). `remote` is None when the reply is from eilpost, not from the next hop."""

    recipient: Address
    reply: Reply
    remote: str | None = None


class Failed(FrameStruct, frozen=True, tag="failed"):
    """Permanent failure (`reply` 5xx). `remote` as in Deferred."""

    recipient: Address
    reply: Reply
    remote: str | None = None


Outcome = Delivered | Deferred | Failed


class ExchangerReply(FrameStruct, frozen=True):
    """What one exchanger of an attempt replied, or why it could not be asked. `remote` is as in Delivered, or the host
    name alone if it has no address.
    """

    remote: str
    reply: Reply
