"""The Courier port: delivers a message once to its next hop and says what became of each recipient.

A courier never decides about retries, never touches the log, and never raises for what a next hop did: that is an
outcome.
Two couriers: `delivery/smtp_courier.py` (SMTP and LMTP) and `delivery/mailbox_courier.py`; tests have a sink.
"""

from __future__ import annotations

from typing import Protocol

from mail.outcome import Outcome
from mail.record import Delivery


class Courier(Protocol):
    async def deliver(self, delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        """Try once; one outcome for each of the envelope's recipients, in their order. Bounded in time by the
        courier.

        Cancelled before the next hop can have taken the message, it gives up and raises CancelledError; after that
        it goes on to the answer, and gives up only when it is cancelled again.
        """
        ...

    async def close(self) -> None:
        """Let go of connections, politely (QUIT), within a second. Idempotent."""
        ...
