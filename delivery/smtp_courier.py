"""SMTP and LMTP courier: one attempt to deliver a message to a site.

A reused connection that is lost before the final dot causes a new connection, not a deferral. Recipients over the
server's limit per transaction go into a further transaction. Recipients that the server refuses for now, or loses
before the final dot, go to the next exchanger (`delivery/walk.py`); those without a reply to the dot are deferred.
"""

# Content is sent as it is stored: signing (DKIM) belongs to ingress, and for DSNs to `router/dsn.py`.

from __future__ import annotations

import asyncio

import structlog
from msgspec.structs import replace

from delivery.courier import Progress, same_outcome
from delivery.exchangers import Pipelining
from delivery.pool import Pool
from delivery.transaction import TransactionResult
from delivery.walk import Walk
from mail.envelope import Envelope
from mail.outcome import Delivered, Outcome
from mail.record import Delivery
from mail.reply import Reply
from mail.route import Route

logger = structlog.get_logger()


class SmtpCourier:
    """Implements `delivery.courier.Courier` for ToRelay and ToMx."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def deliver(
        self, delivery: Delivery, content: bytes, progress: Progress | None = None
    ) -> tuple[Outcome, ...]:
        """See the port. If cancelled after the first transaction, it returns the outcomes so far."""
        envelope, route = delivery.message.envelope, delivery.route
        progress = progress or Progress()
        walk = Walk(asyncio.get_running_loop().time(), progress.set_connecting, attempt=progress.attempt)
        outcomes: list[Outcome] = []
        indexes, open_indexes = tuple(range(len(envelope.recipients))), []
        # The loop ends: a server that has `retry_now` accepted at least one recipient of the transaction, and the walk
        # is bounded by SESSIONS_MAX, its deadline, and one repetition without PIPELINING.
        try:
            while indexes:
                remaining = replace(envelope, recipients=tuple(envelope.recipients[index] for index in indexes))
                result = await self._transact(route, remaining, content, walk)
                if isinstance(result, Reply):
                    outcomes = outcomes or list(same_outcome(envelope, result))  # the reply of an exchanger is kept
                    indexes = ()
                else:
                    outcomes = outcomes or list(result.outcomes)
                    for index, outcome in zip(indexes, result.outcomes, strict=True):
                        outcomes[index] = outcome
                    open_indexes += [indexes[index] for index in result.open]
                    indexes = tuple(indexes[index] for index in result.retry_now)
                if not indexes and open_indexes and await self._pool.next_exchanger(route, walk):
                    indexes, open_indexes = tuple(sorted(open_indexes)), []
        except asyncio.CancelledError:
            if not outcomes:
                raise
            # Some recipients have the message: without a report they would get it again. The rest stay deferred.
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        except Exception:  # as above
            if not outcomes:
                raise
            ids = {"queue_id": delivery.message.queue_id, "delivery_id": delivery.id}
            logger.exception("further transaction failed, its recipients deferred", **ids)
        progress.asked = walk.asked
        return tuple(outcomes)

    async def _transact(
        self, route: Route, envelope: Envelope, content: bytes, walk: Walk
    ) -> TransactionResult | Reply:
        """One transaction; repeated on a new connection if a stale one was lost before the final dot. A Reply if there
        is no connection.
        """
        pool, key = self._pool, self._pool.key(route)
        reuse = True
        while True:
            connection = await pool.acquire(key, route, walk, reuse=reuse)
            if isinstance(connection, Reply):
                return connection
            try:
                result = await connection.transact(envelope, content)
            except BaseException:
                pool.release(connection, None)
                raise
            if any(isinstance(outcome, Delivered) for outcome in result.outcomes):
                for host, reply in walk.server_failures.items():
                    pool.back_off(route, host, reply)
            if not pool.release(connection, result):
                walk.on_transaction(connection.host, connection.ip, connection.session.remote, result)
                if connection.session.is_stalled and connection.exchanger.pipelining is Pipelining.NOT_USED:
                    walk.stalled = connection.host, connection.ip
                return result
            reuse = False
