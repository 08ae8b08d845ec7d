"""Inputs of a routing decision besides the queue: policy, directory snapshot, DNS answers and headers. Pure.

One `RoutingContext` serves one batch, so that a reloaded directory or an expired DNS answer does not change it between
two decisions of a commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from mail.directory import Snapshot
from mail.message import QueueId
from mail.resolver import AddressAnswer, DnsUnknown, MxAnswer
from mail.route import ToRelay
from router.site_limits import SiteLimits


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """Routing policy from the settings. `retry` is never empty; its last step repeats."""

    hostname: str
    relay: ToRelay | None = None
    lifetime: timedelta = timedelta(days=5)
    retry: tuple[timedelta, ...] = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15))
    limits: SiteLimits = field(default_factory=SiteLimits)
    recipients_per_delivery: int = 100
    alias_depth: int = 20


@dataclass(frozen=True, slots=True)
class DnsAnswers:
    """DNS answers by domain in A-labels. A missing domain was not answered in time: unknown, not "no such domain"."""

    mx: Mapping[str, MxAnswer] = field(default_factory=dict)
    addresses: Mapping[str, AddressAnswer] = field(default_factory=dict)  # only for domains without MX

    def failure(self, domain: str) -> str:
        """The reason why a domain is unresolved, for operators."""
        for answer in (self.mx.get(domain), self.addresses.get(domain)):
            if isinstance(answer, DnsUnknown):
                return answer.reason
        return f"DNS lookup of {domain} MX timed out"


NO_DNS_ANSWERS = DnsAnswers()


@dataclass(frozen=True, slots=True)
class RoutingContext:
    """Context of the decisions of one batch. `headers`: the first bytes of spooled messages that a DSN may quote."""

    policy: RoutingPolicy
    snapshot: Snapshot
    answers: DnsAnswers = NO_DNS_ANSWERS
    headers: Mapping[QueueId, bytes] = field(default_factory=dict)
