"""Target selection: the addresses of a route in the order to try them (RFC 5321 section 5.1).

Addresses are looked up host by host, when they are needed, and bounded in number.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import assert_never

from delivery.source_addresses import SourceAddresses
from mail.reply import Reply
from mail.resolver import DnsUnknown, IpAddresses, NoRecords, NoSuchDomain, Resolver
from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved
from mail.settings_roles import DeliverySettings

# Postfix: smtp_mx_address_limit 5, smtp_mx_session_limit 2. RFC 5321 section 5.1: at least two.
TARGETS_MAX = 8
HOSTS_MAX = 20  # look-ups per attempt, so that many hosts without addresses do not delay it for hours

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
    """A host that cannot be reached; `reply` is the reason, 4xx if it may be temporary. `is_without_source`: it has
    addresses, but this process has no source address for them.
    """

    reply: Reply
    is_without_source: bool = False


class TargetSelector:
    """Selects targets, among them only addresses that this process has a source address for."""

    def __init__(self, resolver: Resolver, settings: DeliverySettings, sources: SourceAddresses) -> None:
        self._resolver = resolver
        self._settings = settings
        self._sources = sources
        self._random = random.Random()  # noqa: S311 - spreads load, keeps no secret

    async def targets(self, route: Route) -> AsyncGenerator[Target | NoTarget, None]:
        """The addresses to try, best first; a NoTarget for each host without one. Never empty."""
        match route:
            case ToRelay():
                hosts, port = [route.host], route.port
            case ToMx():
                hosts, port = self._exchangers(route.hosts), self._settings.mx_port
            case ToMailbox() | Unresolved():
                raise AssertionError(f"not a route to a server: {route}")
            case _:
                assert_never(route)
        count = 0
        for host in hosts[:HOSTS_MAX]:
            answer = await self._resolver.addresses(host)
            match answer:
                case IpAddresses():
                    refusals = {ip: self._sources.source_refusal(ip) for ip in answer.addresses}
                    for ip in self._order_addresses([ip for ip, reply in refusals.items() if reply is None]):
                        yield Target(host, ip, port)
                        count += 1
                        if count >= TARGETS_MAX:
                            return
                    if not refusals:
                        yield self._no_address(route, host)
                    elif all(refusals.values()):
                        yield NoTarget(next(filter(None, refusals.values())), is_without_source=True)
                case DnsUnknown():
                    yield NoTarget(Reply(451, "4.4.3", answer.reason))
                case NoRecords() | NoSuchDomain():
                    yield self._no_address(route, host)
                case _:
                    assert_never(answer)
        if not count and len(hosts) > HOSTS_MAX:  # later hosts may have an address
            yield NoTarget(Reply(451, "4.4.4", f"None of the first {HOSTS_MAX} mail exchangers has an address"))

    @staticmethod
    def _no_address(route: Route, host: str) -> NoTarget:
        if isinstance(route, ToRelay):  # temporary: the operator can correct the setting
            return NoTarget(Reply(451, "4.4.4", f"The relay {host} has no address"))
        return NoTarget(NO_ADDRESS)

    def _exchangers(self, hosts: Sequence[tuple[int, str]]) -> list[str]:
        """By preference, shuffled among equals (RFC 5321 section 5.1)."""
        shuffled = list(hosts)
        self._random.shuffle(shuffled)
        return [name for _, name in sorted(shuffled, key=itemgetter(0))]

    def _order_addresses(self, addresses: Sequence[str]) -> list[str]:
        """A host's addresses: the preferred family first, shuffled within each family."""
        shuffled = list(addresses)
        self._random.shuffle(shuffled)
        return sorted(shuffled, key=lambda ip: (":" in ip) is not self._settings.prefer_ipv6)
