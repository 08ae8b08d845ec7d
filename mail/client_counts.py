"""Amounts counted per client: connections, or bytes in memory. Pure.

An IPv4 client is its address. An IPv6 client is its /64, which one host can have for itself, and its /48, which one
customer can have; a /48 has a higher limit, because it may be a whole company.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from functools import lru_cache

WIDE_FACTOR = 4  # limit of a /48, in limits of a /64


@lru_cache(maxsize=4096)
def client_networks(ip: str) -> tuple[str, ...]:
    """The keys by which a client is counted, the narrowest first: "192.0.2.1", or "2001:db8:1:2::/64" and
    "2001:db8:1::/48". The address has no zone.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:  # unknown: the client disconnected at once
        return (ip,)
    if isinstance(address, ipaddress.IPv4Address):
        return (ip,)
    if address.ipv4_mapped is not None:
        return (str(address.ipv4_mapped),)
    return tuple(str(ipaddress.ip_network((address, prefix), strict=False)) for prefix in (64, 48))


class ClientCounts:
    """Amounts by client, with a limit for each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._amounts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._amounts)

    def __getitem__(self, ip: str) -> int:
        return self._amounts[client_networks(ip)[0]]

    def has_room(self, ip: str, added: int = 1) -> bool:
        """Whether `added` more is within the limits of the client."""
        amounts, limit = self._amounts, self._limit
        for network in client_networks(ip):
            if amounts[network] + added > limit:
                return False
            limit *= WIDE_FACTOR
        return True

    def add(self, ip: str, added: int = 1) -> None:
        """`added` may be negative. A client without an amount has no entry."""
        for network in client_networks(ip):
            amount = self._amounts[network] + added
            if amount:
                self._amounts[network] = amount
            else:
                self._amounts.pop(network, None)
