"""Looks up the facts of a batch before anything is decided: what DNS says, and the headers of spooled messages.

All questions of a batch are asked at once and get a short time together, counted from when each was first asked: a
domain that is known to be silent costs no batch after its first anything. What is not answered by then is left out
(the decision lets such a delivery wait) but goes on being asked, so that the answer lies in the resolver's cache at
the next try. DNS so never holds a shard up. It decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from mail.directory.expand import expand
from mail.message import QueueId, Spooled
from mail.record import Accepted, Pending
from mail.resolver import AddressAnswer, DnsUnknown, MxAnswer, NoRecords, Resolver
from mail.spool import Spool, SpoolDamaged, SpoolUnavailable
from router.decide import reroute_mx_domains
from router.dsn import QUOTED_BYTES_MAX
from router.next_hop import mx_domain
from router.routing_context import NO_DNS_ANSWERS, DnsAnswers, RoutingContext

logger = structlog.get_logger()

DNS_WAIT = timedelta(milliseconds=250)
SPOOL_TIMEOUT_SECONDS = 5.0
QUERIES_MAX = 1000  # asked at the same time by one router; more are left for the next batch


@dataclass(frozen=True, slots=True)
class _Query:
    task: asyncio.Task[tuple[MxAnswer, AddressAnswer | None]]
    wait_until: float  # by the loop's clock


class BatchResolver:
    """Asks DNS for whole batches. One for a router; `close()` drops what is still being asked."""

    def __init__(self, resolver: Resolver, wait: timedelta = DNS_WAIT) -> None:
        self._resolver = resolver
        self._wait_seconds = wait.total_seconds()
        self._queries: dict[str, _Query] = {}

    async def resolve(self, domains: Collection[str]) -> DnsAnswers:
        """The MX of each domain, and its addresses where it has none; without those that take too long."""
        if not domains:
            return NO_DNS_ANSWERS
        queries = {domain: query for domain in domains if (query := self._query(domain)) is not None}
        now = asyncio.get_running_loop().time()
        waits = {one.task: one.wait_until - now for one in queries.values() if one.wait_until > now}
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
            until = asyncio.get_running_loop().time() + self._wait_seconds
            query = self._queries[domain] = _Query(asyncio.create_task(self._look_up(domain)), until)
            query.task.add_done_callback(lambda _: self._queries.pop(domain, None))
        return query

    async def _look_up(self, domain: str) -> tuple[MxAnswer, AddressAnswer | None]:
        try:
            answer = await self._resolver.mx(domain)
            # RFC 5321 section 5.1: without MX, the address records make the domain its own exchanger.
            return answer, await self._resolver.addresses(domain) if isinstance(answer, NoRecords) else None
        except Exception as error:  # a bug of an adapter costs a delay, not the shard
            logger.exception("resolver failed", domain=domain)
            return DnsUnknown(repr(error)), None

    async def close(self) -> None:
        tasks = [question.task for question in self._queries.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def domains_to_resolve(accepted: Sequence[Accepted], due: Sequence[Pending], context: RoutingContext) -> set[str]:
    """The domains whose MX the decisions on these facts depend on. Pure."""
    domains: set[str] = set()
    if context.policy.relay is not None:
        return domains  # a relay takes all that is not local
    for fact in accepted:
        for final in expand(
            fact.message.envelope.recipients, context.snapshot, context.policy.alias_depth
        ).final_recipients:
            if (domain := mx_domain(final.recipient.address, final.destination, context)) is not None:
                domains.add(domain)
    for line in due:
        domains.update(reroute_mx_domains(line.delivery, context))
    return domains


async def read_headers(spool: Spool, sources: Mapping[QueueId, Spooled]) -> dict[QueueId, bytes]:
    """The beginning of each spooled message; empty when it cannot be read: a report without headers is a report."""

    async def read(spooled: Spooled) -> bytes:
        try:
            async with asyncio.timeout(SPOOL_TIMEOUT_SECONDS):
                return await spool.read(spooled, QUOTED_BYTES_MAX)
        except (SpoolDamaged, SpoolUnavailable, TimeoutError) as error:
            logger.warning("report goes without headers", reason=str(error) or "the spool does not answer")
            return b""

    headers = await asyncio.gather(*(read(spooled) for spooled in sources.values()))
    return dict(zip(sources, headers, strict=True))
