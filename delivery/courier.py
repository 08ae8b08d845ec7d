"""The Courier port: one attempt to deliver a message to its next hop; and the outcome that a reply means.

Implementations: `delivery/smtp_courier.py` (SMTP and LMTP) and `delivery/mailbox_courier.py`. A failure of the next hop
is an outcome, not an exception.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mail.address import Address
from mail.envelope import Envelope
from mail.outcome import Deferred, Delivered, ExchangerReply, Failed, Outcome
from mail.record import Delivery
from mail.reply import Reply


class Progress:
    """What an attempt reports besides its outcomes. `attempt`: its number, from 1. `asked`: the exchangers asked and
    what they replied. `set_connecting`: called with true before a connection is opened, and with false afterwards.
    """

    __slots__ = ("asked", "attempt", "set_connecting")

    def __init__(self, set_connecting: Callable[[bool], None] = lambda _: None, *, attempt: int = 1) -> None:
        self.asked: tuple[ExchangerReply, ...] = ()
        self.attempt = attempt
        self.set_connecting = set_connecting


class Courier(Protocol):
    async def deliver(
        self, delivery: Delivery, content: bytes, progress: Progress | None = None, /
    ) -> tuple[Outcome, ...]:
        """Try once, with time-outs. Returns one outcome per recipient of the envelope, in order.

        Cancellation raises CancelledError before the end of the first transaction; once the final dot was sent, only
        the second cancellation does, because the next hop may have accepted the message. After a transaction, also one
        that an exchanger deferred, it ends the attempt with the outcomes so far.
        """
        ...


def outcome_of(recipient: Address, reply: Reply, remote: str | None = None) -> Outcome:
    """The outcome that a reply means: 2xx delivered, 4xx deferred, 5xx failed."""
    if reply.is_positive:
        return Delivered(recipient, reply, remote)
    return Deferred(recipient, reply, remote) if reply.is_temporary else Failed(recipient, reply, remote)


def same_outcome(envelope: Envelope, reply: Reply) -> tuple[Outcome, ...]:
    """The outcome of every recipient, by a local reply."""
    return tuple(outcome_of(recipient.address, reply) for recipient in envelope.recipients)
