"""Dependencies and limits that the listeners of a process share, and the queries of a session to them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from ingress import access_policy, replies
from ingress.accept import Acceptance
from ingress.limits import ConnectionLimiter, MemoryBudget
from ingress.session import CheckCapacity
from ingress.spool_monitor import SpoolMonitor
from mail.directory import Directory
from mail.log import Appender, Down, Full
from mail.reply import Reply
from mail.resolver import NoRecords, Resolver

logger = structlog.get_logger()

_DNS_TIMEOUT_SECONDS = 20.0  # longer than the resolver's own time-out


@dataclass(frozen=True, slots=True)
class Services:
    directory: Directory
    resolver: Resolver
    log: Appender
    acceptance: Acceptance
    connection_limiter: ConnectionLimiter
    memory_budget: MemoryBudget
    spool_monitor: SpoolMonitor

    def admit(self, ip: str, *, exempt: bool) -> bool:
        """Count a connection; False when there are too many. Under stress, the caller shortens the time-outs."""
        limiter = self.connection_limiter
        was_under_stress = limiter.is_under_stress
        admitted = limiter.acquire(ip, exempt=exempt)
        if limiter.is_under_stress and not was_under_stress:
            logger.warning(
                "under stress, shorter time-outs for clients outside relay networks", connections=limiter.total
            )
        return admitted

    def release(self, ip: str, *, exempt: bool) -> None:
        limiter = self.connection_limiter
        was_under_stress = limiter.is_under_stress
        limiter.release(ip, exempt=exempt)
        if was_under_stress and not limiter.is_under_stress:
            logger.info("no longer under stress", connections=limiter.total)

    def check_capacity(self, action: CheckCapacity, ip: str, now: float, *, exempt: bool) -> Reply | None:
        """The refusal if the log, the spool or the memory budget has no capacity for a message, else None. `exempt`:
        from the limit per client.
        """
        condition = self.log.condition() if action.at_mail else None
        if isinstance(condition, Down):
            return replies.SERVICE_NOT_AVAILABLE
        has_memory = not isinstance(condition, Full) and self.memory_budget.has_capacity(
            ip, action.size_bytes, now, exempt=exempt
        )
        if not has_memory:
            return replies.INSUFFICIENT_STORAGE
        return self.spool_monitor.refusal if action.at_mail else None

    async def check_domain(self, domain: str) -> Reply | None:
        """Check by DNS whether a sender's domain accepts mail. Return the refusal or None."""
        try:
            async with asyncio.timeout(_DNS_TIMEOUT_SECONDS):
                verdict = access_policy.evaluate_mx(await self.resolver.mx(domain), domain)
                if isinstance(verdict, NoRecords):
                    verdict = access_policy.evaluate_addresses(await self.resolver.addresses(domain), domain)
        except TimeoutError:
            return replies.SENDER_DOMAIN_LOOKUP_FAILED.about(domain)
        return verdict

    async def open_tenant(self, tenant: str) -> Reply | None:
        """Open the tenant's log. Return the refusal or None."""
        await self.log.open_tenant(tenant)
        match self.log.condition(tenant):
            case Full():
                return replies.INSUFFICIENT_STORAGE
            case Down():
                return replies.TENANT_NOT_AVAILABLE
            case _:
                return None
