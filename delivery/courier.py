"""The Courier port: one attempt to deliver a message to its next hop.

Implementations: `delivery/smtp_courier.py` (SMTP and LMTP) and `delivery/mailbox_courier.py`. A failure of the next hop
is an outcome, not an exception.
"""

from __future__ import annotations

from typing import Protocol

from mail.outcome import Outcome
from mail.record import Delivery


class Courier(Protocol):
    async def deliver(self, delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        """Try once, with time-outs. Returns one outcome per recipient of the envelope, in order.

        Cancellation raises CancelledError as long as the next hop cannot have accepted the message; after that the
        courier still waits for the reply, until it is cancelled again.
        """
        ...

    async def close(self) -> None:
        """Close connections with QUIT, within a second. Idempotent."""
        ...
