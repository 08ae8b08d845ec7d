"""The Resolver port: what DNS says, as values that keep "no" apart from "do not know".

Answers are cached by their TTL and asked once at a time (single flight) inside the adapter; no call raises for what DNS
says. Adapters: `dnspython`; `static` (a struct of maps and a fail list) for tests.
Source: RFC 5321 section 5.1, RFC 7505 (null MX), RFC 2308 (negative caching).
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
    """The domain says that it takes no mail (RFC 7505)."""


@dataclass(frozen=True, slots=True)
class IpAddresses:
    """IPv4 and IPv6 addresses of a host. Never empty."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoRecords:
    """The name exists and has no such record (NODATA)."""


@dataclass(frozen=True, slots=True)
class NoSuchDomain:
    """NXDOMAIN."""


@dataclass(frozen=True, slots=True)
class DnsUnknown:
    """No answer, SERVFAIL, a time-out: temporary by definition. `reason` is for the log."""

    reason: str


MxAnswer = MxHosts | NullMx | NoRecords | NoSuchDomain | DnsUnknown
AddressAnswer = IpAddresses | NoRecords | NoSuchDomain | DnsUnknown


class Resolver(Protocol):
    async def mx(self, domain: str) -> MxAnswer:
        """MX of a domain in A-labels."""
        ...

    async def addresses(self, host: str) -> AddressAnswer:
        """A and AAAA of a host; an IP address answers itself."""
        ...
