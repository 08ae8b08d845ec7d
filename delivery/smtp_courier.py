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

from delivery.client_session import Timeouts
from delivery.courier import same_outcome
from delivery.pool import Pool
from delivery.source_addresses import SourceAddresses
from delivery.targets import TargetSelector
from delivery.transaction import TransactionResult
from mail.envelope import Envelope
from mail.outcome import Outcome
from mail.record import Delivery
from mail.reply import Reply
from mail.resolver import Resolver
from mail.route import Route
from mail.settings_roles import DeliverySettings

logger = structlog.get_logger()


class SmtpCourier:
    """Implements `delivery.courier.Courier` for ToRelay and ToMx."""

    def __init__(
        self, *, settings: DeliverySettings, hostname: str, resolver: Resolver, timeouts: Timeouts | None = None
    ) -> None:
        sources = SourceAddresses(settings.source_addresses)
        targets = TargetSelector(
            resolver=resolver,
            port=settings.mx_port,
            prefer_ipv6=settings.prefer_ipv6,
            source_refusal=sources.source_refusal,
        )
        self._pool = Pool(
            targets=targets,
            settings=settings,
            hostname=settings.ehlo_name or hostname,
            sources=sources,
            timeouts=timeouts,
        )

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
            except Exception:
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

    async def close(self) -> None:
        await self._pool.close()

    async def _transact(self, route: Route, envelope: Envelope, content: bytes) -> TransactionResult:
        """One transaction; repeated on a new connection if a stale one was lost before the final dot."""
        pool = self._pool
        reuse = True
        while True:
            connection = await pool.acquire(route, reuse=reuse)
            if isinstance(connection, Reply):
                return TransactionResult(same_outcome(envelope, connection))
            reused = connection.transactions > 0
            connection_lost = True
            failure: str | None = None
            try:
                result = await connection.transact(envelope, content)
                connection_lost = result.connection_lost
                if connection_lost and not reused:
                    failure = result.outcomes[-1].reply.text
            finally:
                pool.release(route, connection, connection_lost=connection_lost, failure=failure)
            if connection_lost and reused and not result.dot_sent:
                reuse = False
                pool.drop_idle(route, connection.session.remote)
                continue
            return result
