"""Look-ups for a batch before the decisions: DNS answers, and headers of spooled messages.

All queries of a batch run concurrently and share one short time-out, counted from the first request of each domain, so
that a slow domain delays one batch only. A query that times out continues in the background and fills the resolver's
cache for the next batch; until then its deliveries wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from mail.directory.expand import expand
from mail.message import QueueId, Spooled
from mail.record import Accepted, QueueEntry
from mail.resolver import AddressAnswer, DnsUnknown, MxAnswer, NoRecords, Resolver
from mail.spool import Spool, SpoolDamaged, SpoolUnavailable
from mail.tasks import cancel_tasks
from router.decide import reroute_mx_domains
from router.dsn import QUOTED_BYTES_MAX
from router.next_hop import mx_domain
from router.routing_context import NO_DNS_ANSWERS, DnsAnswers, RoutingContext

logger = structlog.get_logger()

DNS_WAIT = timedelta(milliseconds=250)
SPOOL_TIMEOUT_SECONDS = 5.0
QUERIES_MAX = 1000  # concurrent queries of one router; further domains wait for a later batch


@dataclass(frozen=True, slots=True)
class _Query:
    task: asyncio.Task[tuple[MxAnswer, AddressAnswer | None]]
    deadline: float  # of the batches that wait for it, by the loop's clock


class BatchResolver:
    """DNS queries of whole batches. One per router; `close()` cancels running queries."""

    def __init__(self, resolver: Resolver, wait: timedelta = DNS_WAIT) -> None:
        self._resolver = resolver
        self._wait_seconds = wait.total_seconds()
        self._queries: dict[str, _Query] = {}

    async def resolve(self, domains: Collection[str]) -> DnsAnswers:
        """The MX of each domain, and its addresses if it has none; domains that time out are left out."""
        if not domains:
            return NO_DNS_ANSWERS
        queries = {domain: query for domain in domains if (query := self._query(domain)) is not None}
        now = asyncio.get_running_loop().time()
        waits = {query.task: query.deadline - now for query in queries.values() if query.deadline > now}
        if waits:
            await asyncio.wait(waits, timeout=max(waits.values()))
        mx: dict[str, MxAnswer] = {}
        addresses: dict[str, AddressAnswer] = {}
        for domain, query in queries.items():
            task = query.task
            if task.done() and not task.cancelled():
                answer, address = task.result()
                mx[domain] = answer
                if address is not None:
                    addresses[domain] = address
        return DnsAnswers(mx, addresses)

    def _query(self, domain: str) -> _Query | None:
        query = self._queries.get(domain)
        if query is None:
            if len(self._queries) >= QUERIES_MAX:
                return None
            deadline = asyncio.get_running_loop().time() + self._wait_seconds
            query = self._queries[domain] = _Query(asyncio.create_task(self._look_up(domain)), deadline)
            query.task.add_done_callback(lambda _: self._queries.pop(domain, None))
        return query

    async def _look_up(self, domain: str) -> tuple[MxAnswer, AddressAnswer | None]:
        try:
            answer = await self._resolver.mx(domain)
            # RFC 5321 section 5.1: without MX, the address records make the domain its own exchanger.
            return answer, await self._resolver.addresses(domain) if isinstance(answer, NoRecords) else None
        except Exception as error:  # a bug in a resolver delays the delivery and does not stop the shard
            logger.exception("resolver failed, deliveries wait for DNS", domain=domain)
            return DnsUnknown(repr(error)), None

    async def close(self) -> None:
        await cancel_tasks(*(query.task for query in self._queries.values()))


def domains_to_resolve(accepted: Sequence[Accepted], due: Sequence[QueueEntry], context: RoutingContext) -> set[str]:
    """The domains whose MX records the decisions on these triggers need. Pure."""
    domains: set[str] = set()
    if context.policy.relay is not None:
        return domains  # the relay accepts all mail that is not local
    for record in accepted:
        for final in expand(
            record.message.envelope.recipients, context.snapshot, context.policy.alias_depth
        ).final_recipients:
            if (domain := mx_domain(final.recipient.address, final.destination, context)) is not None:
                domains.add(domain)
    for entry in due:
        domains.update(reroute_mx_domains(entry.delivery, context))
    return domains


async def read_headers(spool: Spool, sources: Mapping[QueueId, Spooled]) -> dict[QueueId, bytes]:
    """The first bytes of each spooled message; empty if it cannot be read, because a DSN may omit the headers."""

    async def read(queue_id: QueueId, spooled: Spooled) -> bytes:
        try:
            async with asyncio.timeout(SPOOL_TIMEOUT_SECONDS):
                return await spool.read(spooled, QUOTED_BYTES_MAX)
        except (SpoolDamaged, SpoolUnavailable, TimeoutError) as error:
            reason = str(error) or "the spool does not answer"
            logger.warning("DSN without original headers", queue_id=queue_id, error=reason)
            return b""

    headers = await asyncio.gather(*(read(queue_id, spooled) for queue_id, spooled in sources.items()))
    return dict(zip(sources, headers, strict=True))
