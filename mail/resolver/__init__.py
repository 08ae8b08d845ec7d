"""Resolver port: DNS answers as values that distinguish a negative answer from no answer.

Answers are cached by TTL, concurrent identical queries are merged (single flight), and no call raises for a DNS error.
Adapter: `dnspython`. Source: RFC 5321 section 5.1, RFC 7505 (null MX), RFC 2308 (negative caching).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MxHosts:
    """MX records as (preference, host name in lower case without final dot), sorted. Never empty."""

    hosts: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class NullMx:
    """The domain accepts no mail (RFC 7505)."""


@dataclass(frozen=True, slots=True)
class IpAddresses:
    """IPv4 and IPv6 addresses of a host. Never empty."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoRecords:
    """The name exists and has no record of this type (NODATA)."""


@dataclass(frozen=True, slots=True)
class NoSuchDomain:
    """NXDOMAIN."""


@dataclass(frozen=True, slots=True)
class DnsUnknown:
    """A temporary error. `reason` is like "DNS lookup of example.test MX timed out" or "... MX failed: SERVFAIL"."""

    reason: str


MxAnswer = MxHosts | NullMx | NoRecords | NoSuchDomain | DnsUnknown
AddressAnswer = IpAddresses | NoRecords | NoSuchDomain | DnsUnknown


class Resolver(Protocol):
    async def mx(self, domain: str) -> MxAnswer:
        """MX records of a domain in A-labels."""
        ...

    async def addresses(self, host: str) -> AddressAnswer:
        """A and AAAA records of a host; an IP address is returned unchanged."""
        ...
