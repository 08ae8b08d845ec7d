"""SMTP and LMTP courier: one attempt to deliver a message to a site.

A reused connection that is lost before the final dot causes a new connection, not a deferral. Recipients over the
server's limit per transaction go into a further transaction. After the final dot nothing is repeated: recipients
without a reply are deferred.
"""

# Content is sent as it is stored: signing (DKIM) belongs to ingress, and for DSNs to `router/dsn.py`.

from __future__ import annotations

import asyncio

import structlog
from msgspec.structs import replace

from delivery.courier import same_outcome
from delivery.peer import PeerKey
from delivery.pool import Pool
from delivery.transaction import TransactionResult
from mail.envelope import Envelope
from mail.outcome import Outcome
from mail.record import Delivery
from mail.reply import Reply
from mail.route import Route

logger = structlog.get_logger()


class SmtpCourier:
    """Implements `delivery.courier.Courier` for ToRelay and ToMx."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def deliver(self, delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        """See the port. If cancelled between two transactions, it returns the outcomes so far."""
        envelope = delivery.message.envelope
        result = await self._transact(delivery.route, envelope, content)
        if not result.retry_now:
            return result.outcomes
        outcomes = list(result.outcomes)
        indexes = result.retry_now
        # The server accepts at least one recipient of each transaction with `retry_now`, so the loop ends.
        while indexes:
            remaining = replace(envelope, recipients=tuple(envelope.recipients[index] for index in indexes))
            try:
                result = await self._transact(delivery.route, remaining, content)
            except asyncio.CancelledError:
                # Some recipients have the message: without a report they would get it again. The rest stay deferred.
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                break
            except Exception:  # some recipients have the message, as above
                logger.exception(
                    "further transaction failed, its recipients deferred",
                    queue_id=delivery.message.queue_id,
                    delivery_id=delivery.id,
                )
                break
            for index, outcome in zip(indexes, result.outcomes, strict=True):
                outcomes[index] = outcome
            indexes = tuple(indexes[index] for index in result.retry_now)
        return tuple(outcomes)

    async def _transact(self, route: Route, envelope: Envelope, content: bytes) -> TransactionResult:
        """One transaction; repeated on a new connection if a stale one was lost before the final dot."""
        pool, key = self._pool, PeerKey(route.site)
        reuse = True
        while True:
            connection = await pool.acquire(key, route, reuse=reuse)
            if isinstance(connection, Reply):
                return TransactionResult(same_outcome(envelope, connection))
            try:
                result = await connection.transact(envelope, content)
            except BaseException:
                pool.release(connection, None)
                raise
            if not pool.release(connection, result):
                return result
            reuse = False
