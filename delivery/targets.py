"""Target selection: the addresses of a route in the order to try them (RFC 5321 section 5.1).

Hosts are tried by preference, those in back-off last. The addresses of a host are looked up when they are needed, and
bounded in number, so that a host with many unreachable addresses does not use up the attempt.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import assert_never

from delivery.exchangers import Exchangers
from delivery.own_addresses import OwnAddresses
from delivery.source_addresses import SourceAddresses
from delivery.walk import Walk
from mail.reply import LOOPS_BACK, Reply
from mail.resolver import AddressAnswer, DnsUnknown, IpAddresses, NoRecords, NoSuchDomain, Resolver
from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved
from mail.settings_roles import DeliverySettings

# Addresses of one host for each attempt; Postfix has 5 for all hosts together (smtp_mx_address_limit). RFC 5321 section
# 5.1: at least two.
ADDRESSES_PER_HOST_MAX = 4
HOSTS_MAX = 20  # look-ups per attempt, so that many hosts without addresses do not delay it for hours

IN_BACKOFF = Reply(451, "4.4.1", "Not tried: it failed a moment ago")
# Temporary: the operator can correct the setting.
RELAY_LOOPS_BACK = Reply(451, "4.4.6", "The relay is this server itself")
NO_ADDRESS = Reply(550, "5.4.4", "No mail exchanger of the domain has an address")


@dataclass(frozen=True, slots=True)
class Target:
    """One address to connect to. `str()`: "mx.example.test[192.0.2.1]:25"."""

    host: str
    ip: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}[{self.ip}]:{self.port}" if self.host != self.ip else f"[{self.ip}]:{self.port}"


@dataclass(frozen=True, slots=True)
class NoTarget:
    """A target that cannot be used, or a host without one. `reply` is the reason for the delivery, 4xx if it may be
    temporary; `said` is what the server itself replied. `is_without_source`: the host has addresses, but this process
    has no source address for them. `is_own`: the server has the name of this one. `is_by_policy`: the delivery needs
    TLS or AUTH; the site is not at fault. `rejects_mail`: the greeting says that the server accepts no mail at all.
    """

    host: str
    remote: str
    reply: Reply
    said: Reply | None = None
    is_without_source: bool = False
    is_own: bool = False
    is_by_policy: bool = False
    rejects_mail: bool = False


class TargetSelector:
    """Selects targets, among them only addresses that this process has a source address for."""

    def __init__(
        self,
        resolver: Resolver,
        settings: DeliverySettings,
        sources: SourceAddresses,
        exchangers: Exchangers,
        own: OwnAddresses,
    ) -> None:
        self._resolver = resolver
        self._settings = settings
        self._sources = sources
        self._exchangers = exchangers
        self._own = own
        self._random = random.Random()  # noqa: S311 - spreads load, keeps no secret

    def hosts(self, route: Route) -> tuple[tuple[tuple[int, str], ...], int]:
        """The hosts of a route with their preferences, in no order among equals, and their port."""
        match route:
            case ToRelay():
                return ((0, route.host),), route.port
            case ToMx():
                return route.hosts, self._settings.mx_port
            case ToMailbox() | Unresolved():
                raise AssertionError(f"not a route to a server: {route}")
            case _:
                assert_never(route)

    def is_backed_off(self, route: Route, host: str, now_seconds: float) -> bool:
        return self._exchangers.backoff_reason(host, self.hosts(route)[1], now_seconds) is not None

    def backoff_reason(self, route: Route, now_seconds: float) -> str | None:
        """Why no host of the route is to be tried now, or None."""
        hosts, port = self.hosts(route)
        reasons = [self._exchangers.backoff_reason(host, port, now_seconds) for _, host in hosts[:HOSTS_MAX]]
        return reasons[-1] if all(reason is not None for reason in reasons) else None

    async def targets(self, route: Route, walk: Walk, now_seconds: float) -> AsyncGenerator[Target | NoTarget, None]:
        """The addresses to try, best first; a NoTarget for each host without one. Empty only if not `has_next`."""
        hosts, port = self._hosts_of_walk(route, walk)
        delayed: list[tuple[str, str, AddressAnswer]] = []
        count = 0
        own: str | None = None
        for preference, group in groupby(hosts, key=itemgetter(0)):
            names = [host for _, host in group if host not in walk.hosts_tried]
            answers = await asyncio.gather(*(self._resolver.addresses(host) for host in names))
            own = next((host for host, answer in zip(names, answers, strict=True) if self._is_own(answer, port)), None)
            if own is not None:  # RFC 5321 section 5.1: this server and all exchangers that are not better are out
                walk.remove_from(preference)
                yield NoTarget(own, own, LOOPS_BACK if isinstance(route, ToMx) else RELAY_LOOPS_BACK)
                break
            for host, answer in zip(names, answers, strict=True):
                reason = self._exchangers.backoff_reason(host, port, now_seconds)
                if reason is not None:
                    delayed.append((host, reason, answer))
                    continue
                for item in self._targets_of(route, host, port, answer, walk):
                    count += isinstance(item, Target)
                    yield item
        for host, reason, answer in delayed:
            if walk.sessions:
                yield NoTarget(host, host, IN_BACKOFF.with_text(f"{IN_BACKOFF.text}: {reason}"))
                continue
            for item in self._targets_of(route, host, port, answer, walk):
                count += isinstance(item, Target)
                yield item
        if walk.sessions == 1:  # RFC 5321 section 5.1: at least two addresses
            for _, host in hosts:
                if host in walk.hosts_tried:
                    for item in self._targets_of(route, host, port, await self._resolver.addresses(host), walk):
                        if isinstance(item, Target):
                            yield item
        elif (
            own is None and not count and isinstance(route, ToMx) and len(route.hosts) > HOSTS_MAX
        ):  # later hosts may have an address
            text = f"None of the first {HOSTS_MAX} mail exchangers has an address"
            yield NoTarget(hosts[-1][1], hosts[-1][1], Reply(451, "4.4.4", text))

    def _is_own(self, answer: AddressAnswer, port: int) -> bool:
        return isinstance(answer, IpAddresses) and any(self._own.contains(ip, port) for ip in answer.addresses)

    async def has_next(self, route: Route, walk: Walk) -> bool:
        """Whether there is a target that was not tried in this walk."""
        hosts, _ = self._hosts_of_walk(route, walk)
        if any(host not in walk.hosts_tried for _, host in hosts):
            return True
        if walk.sessions != 1:
            return False
        for _, host in hosts:
            answer = await self._resolver.addresses(host)
            if isinstance(answer, IpAddresses) and walk.addresses.issuperset(answer.addresses):
                continue
            if isinstance(answer, IpAddresses) and any(self._select(answer.addresses, walk)):
                return True
        return False

    def _hosts_of_walk(self, route: Route, walk: Walk) -> tuple[tuple[tuple[int, str], ...], int]:
        """By preference, shuffled among equals (RFC 5321 section 5.1); the same order for the whole walk."""
        hosts, port = self.hosts(route)
        if walk.hosts is None:
            shuffled = list(hosts)
            self._random.shuffle(shuffled)
            walk.hosts = tuple(sorted(shuffled, key=itemgetter(0)))[:HOSTS_MAX]
        return walk.hosts, port

    def _targets_of(
        self, route: Route, host: str, port: int, answer: AddressAnswer, walk: Walk
    ) -> Iterator[Target | NoTarget]:
        match answer:
            case IpAddresses(addresses):
                selected = self._select(addresses, walk)
                for ip in selected:
                    yield Target(host, ip, port)
                refusals = [self._sources.source_refusal(ip) for ip in addresses]
                if not addresses:
                    yield self._no_address(route, host)
                elif not selected and (refusal := next(filter(None, refusals), None)) is not None:
                    yield NoTarget(host, host, refusal, is_without_source=True)
            case DnsUnknown(reason):
                yield NoTarget(host, host, Reply(451, "4.4.3", reason))
            case NoRecords() | NoSuchDomain():
                yield self._no_address(route, host)
            case _:
                assert_never(answer)

    @staticmethod
    def _no_address(route: Route, host: str) -> NoTarget:
        if isinstance(route, ToRelay):  # temporary: the operator can correct the setting
            return NoTarget(host, host, Reply(451, "4.4.4", f"The relay {host} has no address"))
        return NoTarget(host, host, NO_ADDRESS)

    def _select(self, addresses: Sequence[str], walk: Walk) -> list[str]:
        """A host's addresses that were not tried in this walk: the preferred family first, shuffled within each family.

        Of many addresses, half are of the other family, as with Postfix's smtp_balance_inet_protocols: one that this
        machine cannot reach does not use up the addresses tried.
        """
        usable = [ip for ip in addresses if ip not in walk.addresses and self._sources.source_refusal(ip) is None]
        self._random.shuffle(usable)
        preferred = [ip for ip in usable if (":" in ip) is self._settings.prefer_ipv6]
        other = [ip for ip in usable if (":" in ip) is not self._settings.prefer_ipv6]
        share = max(ADDRESSES_PER_HOST_MAX // 2, ADDRESSES_PER_HOST_MAX - len(other))
        return (preferred[:share] + other)[:ADDRESSES_PER_HOST_MAX]
