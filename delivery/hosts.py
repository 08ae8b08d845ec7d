"""From a route to the addresses to try, in order.

In charge of MX preference, of chance among equals, and of which of a host's addresses come first (RFC 5321 section
5.1); never of connecting. Addresses are looked up host by host, when they are needed, and bounded in number.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import assert_never

from mail.reply import Reply
from mail.resolver import DnsUnknown, IpAddresses, NoRecords, NoSuchDomain, Resolver
from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved

# Postfix's smtp_mx_address_limit is 5 and smtp_mx_session_limit 2; RFC 5321 section 5.1 asks for at least two.
TARGETS_MAX = 8
# Hosts whose addresses are looked up in one attempt: a list of names without any must not hold it for hours.
HOSTS_MAX = 20

LOOPS_BACK = Reply(554, "5.4.6", "Mail for this domain loops back to this system: it is its best mail exchanger")
NO_ADDRESS = Reply(550, "5.4.4", "No mail exchanger of the domain has an address")


@dataclass(frozen=True, slots=True)
class Target:
    """One address to connect to. `str()` is how people read it: "mx.example.test[192.0.2.1]:25"."""

    host: str
    ip: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}[{self.ip}]:{self.port}" if self.host != self.ip else f"[{self.ip}]:{self.port}"


@dataclass(frozen=True, slots=True)
class NoTarget:
    """A host gave no address; `reply` says why, 4xx where it may change by itself. `no_source`: it has addresses, and
    there is no source address to connect to them from.
    """

    reply: Reply
    no_source: bool = False


class TargetSelector:
    """Finds targets. `port` is that of mail exchangers, `hostname` ours. `no_source` says why there is no
    source address for connections to an IP address; None: there is one.
    """

    def __init__(
        self,
        *,
        resolver: Resolver,
        hostname: str,
        port: int,
        prefer_ipv6: bool,
        no_source: Callable[[str], Reply | None] = lambda _ip: None,
    ) -> None:
        self._resolver = resolver
        self._hostname = hostname.lower().rstrip(".")
        self._port = port
        self._prefer_ipv6 = prefer_ipv6
        self._no_source = no_source
        self._random = random.Random()  # noqa: S311 - spreads load, keeps no secret

    async def targets(self, route: Route) -> AsyncGenerator[Target | NoTarget, None]:
        """The addresses to try, best first; a NoTarget for each host that has none. Never empty."""
        match route:
            case ToRelay():
                hosts, port = [route.host], route.port
            case ToMx():
                hosts, port = self._exchangers(route.hosts), self._port
                if not hosts:
                    yield NoTarget(LOOPS_BACK)
                    return
            case ToMailbox() | Unresolved():
                raise AssertionError(f"not a route to a server: {route}")
            case _:
                assert_never(route)
        count = 0
        for host in hosts[:HOSTS_MAX]:
            answer = await self._resolver.addresses(host)
            match answer:
                case IpAddresses():
                    no_source = {ip: self._no_source(ip) for ip in answer.addresses}
                    for ip in self._order_addresses([ip for ip, reply in no_source.items() if reply is None]):
                        yield Target(host, ip, port)
                        count += 1
                        if count >= TARGETS_MAX:
                            return
                    if not no_source:
                        yield self._no_address(route, host)
                    elif all(no_source.values()):
                        yield NoTarget(next(filter(None, no_source.values())), no_source=True)
                case DnsUnknown():
                    yield NoTarget(Reply(451, "4.4.3", f"DNS has no answer for {host} now: {answer.reason}"))
                case NoRecords() | NoSuchDomain():
                    yield self._no_address(route, host)
                case _:
                    assert_never(answer)
        if not count and len(hosts) > HOSTS_MAX:  # the others may have one
            yield NoTarget(Reply(451, "4.4.4", f"None of the first {HOSTS_MAX} mail exchangers has an address"))

    @staticmethod
    def _no_address(route: Route, host: str) -> NoTarget:
        if isinstance(route, ToRelay):  # a name in our configuration, which an operator will correct
            return NoTarget(Reply(451, "4.4.4", f"The relay {host} has no address"))
        return NoTarget(NO_ADDRESS)

    def _exchangers(self, hosts: Sequence[tuple[int, str]]) -> list[str]:
        """By preference, shuffled among equals (RFC 5321 section 5.1), without ourselves and anything worse."""
        own_preference = min((preference for preference, name in hosts if name == self._hostname), default=None)
        ordered = []
        for preference, group in groupby(sorted(hosts), key=lambda host: host[0]):
            if own_preference is not None and preference >= own_preference:
                break
            names = [name for _, name in group]
            self._random.shuffle(names)
            ordered += names
        return ordered

    def _order_addresses(self, addresses: Sequence[str]) -> list[str]:
        """All of a host's addresses: the preferred family first, shuffled within each."""
        shuffled = list(addresses)
        self._random.shuffle(shuffled)
        return sorted(shuffled, key=lambda ip: (":" in ip) is not self._prefer_ipv6)
