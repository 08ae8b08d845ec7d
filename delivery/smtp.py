"""The SMTP (and LMTP) courier: one attempt to hand a message to a site.

In charge of when a transaction may be repeated at once, and of nothing else: a connection that was reused and died
before the final dot costs a reconnect and never a deferral, however many went stale; recipients the server had no room
for go into the next transaction. After the final dot nothing is repeated: who was not answered is deferred, and the
reply says so. Next: `delivery/worker.py` reports the outcomes.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from delivery.dialogue import Deadlines
from delivery.hosts import Hosts
from delivery.pool import Pool, Unreached
from delivery.sources import Sources
from delivery.transaction import Carried
from mail.envelope import Envelope
from mail.outcome import Deferred, Failed, Outcome
from mail.record import Delivery
from mail.reply import Reply
from mail.resolver import Resolver
from mail.route import Route
from mail.settings import DeliverySettings

log = structlog.get_logger()


class SmtpCourier:
    """Implements `delivery.courier.Courier` for ToRelay and ToMx."""

    def __init__(
        self,
        *,
        settings: DeliverySettings,
        hostname: str,
        resolver: Resolver,
        deadlines: Deadlines | None = None,
    ) -> None:
        sources = Sources(settings.source_addresses)
        hosts = Hosts(
            resolver=resolver,
            hostname=hostname,
            port=settings.port,
            prefer_ipv6=settings.prefer_ipv6,
            no_source=sources.why_none,
        )
        self._pool = Pool(
            hosts=hosts,
            settings=settings,
            hostname=settings.ehlo_name or hostname,
            sources=sources,
            deadlines=deadlines,
        )

    async def carry(self, delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        """See the port. Cancelled before the final dot, it gives up; after it, only at the second time; between two
        transactions, it returns what the first came to.
        """
        envelope = delivery.message.envelope
        carried = await self._transact(delivery.route, envelope, content)
        if not carried.again:
            return carried.outcomes
        outcomes = list(carried.outcomes)
        places = carried.again
        # The server takes at least one recipient of each transaction that has an `again`, so this ends.
        while places:
            rest = replace(envelope, recipients=tuple(envelope.recipients[place] for place in places))
            try:
                carried = await self._transact(delivery.route, rest, content)
            except asyncio.CancelledError:
                # Some have the message: not to report that would send it to them again. The rest stay deferred.
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                break
            except Exception:
                log.exception("a further transaction failed", delivery_id=delivery.id)
                break
            for place, outcome in zip(places, carried.outcomes, strict=True):
                outcomes[place] = outcome
            places = tuple(places[index] for index in carried.again)
        return tuple(outcomes)

    async def close(self) -> None:
        await self._pool.close()

    async def _transact(self, route: Route, envelope: Envelope, content: bytes) -> Carried:
        """One transaction that counts: one that a stale connection swallowed does not, and the next has a fresh one."""
        pool = self._pool
        fresh = False
        while True:
            connection = await pool.acquire(route, fresh=fresh)
            if isinstance(connection, Unreached):
                return Carried(_all(envelope, connection.reply))
            reused = connection.transactions > 0
            lost = True
            setback: str | None = None
            try:
                carried = await connection.carry(envelope, content)
                lost = carried.lost
                if lost and not reused:
                    setback = carried.outcomes[-1].reply.text
            finally:
                pool.release(route, connection, lost=lost, setback=setback)
            if lost and reused and not carried.past_dot:
                fresh = True
                pool.drop_idle(route, connection.dialogue.remote)
                continue
            return carried


def _all(envelope: Envelope, reply: Reply) -> tuple[Outcome, ...]:
    kind = Failed if reply.is_permanent else Deferred
    return tuple(kind(recipient.address, reply) for recipient in envelope.recipients)
