"""What a decision may know besides the queue: the rules it follows and the facts that were looked up for it.

Values only; nobody here looks anything up (`resolve.py` does). One `RoutingContext` serves one batch, so
that a directory that
is reloaded or a DNS answer that expires never changes the context in the middle of a commit. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from mail.directory import Snapshot
from mail.message import QueueId
from mail.resolver import AddressAnswer, MxAnswer
from mail.route import ToRelay
from router.site_limits import SiteLimits


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules, from the settings. `retry` is never empty; its last step repeats."""

    hostname: str
    relay: ToRelay | None = None
    lifetime: timedelta = timedelta(days=5)
    retry: tuple[timedelta, ...] = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15))
    limits: SiteLimits = field(default_factory=SiteLimits)
    recipients_per_delivery: int = 100
    alias_depth: int = 20


@dataclass(frozen=True, slots=True)
class DnsAnswers:
    """What DNS said in time, by domain in A-labels. What is missing was not answered yet: unknown, never "no"."""

    mx: Mapping[str, MxAnswer] = field(default_factory=dict)
    addresses: Mapping[str, AddressAnswer] = field(default_factory=dict)  # only where there is no MX


NO_DNS_ANSWERS = DnsAnswers()


@dataclass(frozen=True, slots=True)
class RoutingContext:
    """The facts of one batch. `headers`: the first bytes of spooled messages that a report may have to quote."""

    policy: Policy
    snapshot: Snapshot
    answers: DnsAnswers = NO_DNS_ANSWERS
    headers: Mapping[QueueId, bytes] = field(default_factory=dict)
