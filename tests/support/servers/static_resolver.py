"""Static resolver for tests. Names in `mx` and `addresses` exist, all others do not."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from mail.resolver import AddressAnswer, DnsUnknown, IpAddresses, MxAnswer, MxHosts, NoRecords, NoSuchDomain, NullMx


class StaticResolver:
    """`mx`: domain -> [(preference, host), ...], `[]` for none, `[(0, ".")]` for the null MX. `addresses`: host -> [ip,
    ...]. `fail`: names without an answer. `slow`: name -> delay in seconds. `queries` counts the queries by name.
    """

    def __init__(
        self,
        mx: Mapping[str, Sequence[tuple[int, str]]] | None = None,
        addresses: Mapping[str, Sequence[str]] | None = None,
        fail: Collection[str] = frozenset(),
        slow: Mapping[str, float] | None = None,
    ) -> None:
        self.mx_records = dict(mx or {})
        self.address_records = dict(addresses or {})
        self.failing = set(fail)
        self.slow = dict(slow or {})
        self.queries: Counter[str] = Counter()

    async def mx(self, domain: str) -> MxAnswer:
        name = await self._query(domain)
        if name in self.failing:
            return DnsUnknown(f"DNS lookup of {name} MX timed out")
        records = self.mx_records.get(name)
        if records is None and name not in self.address_records:
            return NoSuchDomain()
        if not records:
            return NoRecords()
        hosts = sorted({(preference, _normalize(host)) for preference, host in records})
        named = tuple((preference, host) for preference, host in hosts if host)
        return MxHosts(named) if named else NullMx()

    async def addresses(self, host: str) -> AddressAnswer:
        try:
            return IpAddresses((str(ipaddress.ip_address(_normalize(host))),))
        except ValueError:
            pass
        name = await self._query(host)
        if name in self.failing:
            return DnsUnknown(f"DNS lookup of {name} A timed out")
        records = self.address_records.get(name)
        if records is None and name not in self.mx_records:
            return NoSuchDomain()
        return IpAddresses(tuple(records)) if records else NoRecords()

    async def close(self) -> None:
        """Nothing to do."""

    async def _query(self, name: str) -> str:
        normalized = _normalize(name)
        self.queries[normalized] += 1
        if normalized in self.slow:
            await asyncio.sleep(self.slow[normalized])
        return normalized


def _normalize(name: str) -> str:
    return name.rstrip(".").lower()
