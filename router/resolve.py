"""Looks up the facts of a batch before anything is decided: what DNS says, and the headers of spooled messages.

All questions of a batch are asked at once and get a short time together, counted from when each was first asked: a
domain that is known to be silent costs no batch after its first anything. What is not answered by then is left out
(the decision lets such a delivery wait) but goes on being asked, so that the answer lies in the resolver's cache at
the next try. DNS so never holds a shard up. It decides nothing. Next: `router/decide.py`.
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
from router.decide import questions_again
from router.dsn import MAX_QUOTED_BYTES
from router.nexthop import question
from router.world import NO_ANSWERS, Answers, World

log = structlog.get_logger()

PATIENCE = timedelta(milliseconds=250)
SPOOL_SECONDS = 5.0
QUESTIONS_MAX = 1000  # asked at the same time by one router; more are left for the next batch


@dataclass(frozen=True, slots=True)
class _Question:
    task: asyncio.Task[tuple[MxAnswer, AddressAnswer | None]]
    patient_until: float  # by the loop's clock


class Questions:
    """Asks DNS for whole batches. One for a router; `close()` drops what is still being asked."""

    def __init__(self, resolver: Resolver, patience: timedelta = PATIENCE) -> None:
        self._resolver = resolver
        self._patience_seconds = patience.total_seconds()
        self._asked: dict[str, _Question] = {}

    async def ask(self, domains: Collection[str]) -> Answers:
        """The MX of each domain, and its addresses where it has none; without those that take too long."""
        if not domains:
            return NO_ANSWERS
        asked = {domain: question for domain in domains if (question := self._question(domain)) is not None}
        now = asyncio.get_running_loop().time()
        patience = {one.task: one.patient_until - now for one in asked.values() if one.patient_until > now}
        if patience:
            await asyncio.wait(patience, timeout=max(patience.values()))
        mx: dict[str, MxAnswer] = {}
        addresses: dict[str, AddressAnswer] = {}
        for domain, question in asked.items():
            task = question.task
            if task.done() and not task.cancelled():
                answer, address = task.result()
                mx[domain] = answer
                if address is not None:
                    addresses[domain] = address
        return Answers(mx, addresses)

    def _question(self, domain: str) -> _Question | None:
        question = self._asked.get(domain)
        if question is None:
            if len(self._asked) >= QUESTIONS_MAX:
                return None
            until = asyncio.get_running_loop().time() + self._patience_seconds
            question = self._asked[domain] = _Question(asyncio.create_task(self._look_up(domain)), until)
            question.task.add_done_callback(lambda _: self._asked.pop(domain, None))
        return question

    async def _look_up(self, domain: str) -> tuple[MxAnswer, AddressAnswer | None]:
        try:
            answer = await self._resolver.mx(domain)
            # RFC 5321 section 5.1: without MX, the address records make the domain its own exchanger.
            return answer, await self._resolver.addresses(domain) if isinstance(answer, NoRecords) else None
        except Exception as error:  # a bug of an adapter costs a delay, not the shard
            log.exception("resolver failed", domain=domain)
            return DnsUnknown(repr(error)), None

    async def close(self) -> None:
        tasks = [question.task for question in self._asked.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def domains_in_question(accepted: Sequence[Accepted], due: Sequence[Pending], world: World) -> set[str]:
    """The domains whose MX the decisions on these facts depend on. Pure."""
    domains: set[str] = set()
    if world.policy.relay is not None:
        return domains  # a relay takes all that is not local
    for fact in accepted:
        for final in expand(fact.message.envelope.recipients, world.snapshot, world.policy.alias_depth).finals:
            if (domain := question(final.recipient.address, final.place, world)) is not None:
                domains.add(domain)
    for line in due:
        domains.update(questions_again(line.delivery, world))
    return domains


async def read_headers(spool: Spool, sources: Mapping[QueueId, Spooled]) -> dict[QueueId, bytes]:
    """The beginning of each spooled message; empty when it cannot be read: a report without headers is a report."""

    async def read(spooled: Spooled) -> bytes:
        try:
            async with asyncio.timeout(SPOOL_SECONDS):
                return await spool.read(spooled, MAX_QUOTED_BYTES)
        except (SpoolDamaged, SpoolUnavailable, TimeoutError) as error:
            log.warning("report goes without headers", reason=str(error) or "the spool does not answer")
            return b""

    found = await asyncio.gather(*(read(spooled) for spooled in sources.values()))
    return dict(zip(sources, found, strict=True))
