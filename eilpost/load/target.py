"""Servers under test: their addresses, and rules against a load on servers of others.

A target is a loopback, link-local or private address unless `--allow-public` is given, and never port 25 of a public
address. Names are resolved every few seconds, because a headless Service changes its addresses; every
address is checked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time

from mail import endpoint
from mail.address import AddressError, parse_domain
from mail.service import ServiceError

_RESOLVED_SECONDS = 5.0
_RESERVED = ("test", "example", "invalid", "localhost", "example.com", "example.net", "example.org")  # RFC 2606


class TargetRefused(ServiceError):
    """The target is not allowed; one line with the reason."""


class NameNotResolved(OSError):
    """The target's name has no address now."""


def check_address(address: str, port: int, *, allow_public: bool) -> None:
    """Raises TargetRefused for the public Internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not ip.is_global and not ip.is_multicast:
        return
    if ip.is_multicast or not allow_public:
        raise TargetRefused(
            f"{endpoint.format(address, port)} is not a loopback, private or link-local address; use --allow-public"
            " if it is your own server"
        )
    if port == 25:
        raise TargetRefused(
            f"{endpoint.format(address, port)} is port 25 of a public address, which may be an MX host of others: use"
            " another port or a private address of your server"
        )


def check_domain(domain: str, *, allow_any: bool) -> str:
    """The domain in its normal form. Raises ValueError unless it is reserved for tests (RFC 2606)."""
    try:
        name = parse_domain(domain)
    except AddressError as error:
        raise ValueError(f"a domain is expected, like load.test: {error}") from error
    if not allow_any and not any(name == reserved or name.endswith(f".{reserved}") for reserved in _RESERVED):
        raise ValueError(
            f"{name} is not below .test, .example or .invalid; if it is your own domain, use --allow-any-domain"
        )
    return name


class Target:
    """One server under test, HOST:PORT."""

    def __init__(self, host: str, port: int, *, allow_public: bool = False) -> None:
        self.host = host
        self.port = port
        self._allow_public = allow_public
        self._addresses: list[str] = []
        self._resolved_at = float("-inf")
        self._next_address = 0

    def __str__(self) -> str:
        return endpoint.format(self.host, self.port)

    async def address(self) -> str:
        """The next address, in rotation. Raises NameNotResolved, TargetRefused."""
        if time.monotonic() - self._resolved_at > _RESOLVED_SECONDS:
            await self._resolve()
        self._next_address += 1
        return self._addresses[self._next_address % len(self._addresses)]

    async def _resolve(self) -> None:
        try:
            ipaddress.ip_address(self.host)
            addresses, lasting = [self.host], True
        except ValueError:
            lasting = False
            try:
                address_infos = await asyncio.get_running_loop().getaddrinfo(
                    self.host, self.port, type=socket.SOCK_STREAM
                )
            except OSError as error:
                if self._addresses:  # DNS failed: keep the old addresses
                    self._resolved_at = time.monotonic()
                    return
                raise NameNotResolved(f"{self.host} cannot be resolved: {error.strerror or error}") from error
            addresses = list(dict.fromkeys(str(info[4][0]) for info in address_infos))
        for address in addresses:
            check_address(address, self.port, allow_public=self._allow_public)
        self._addresses = addresses
        self._resolved_at = float("inf") if lasting else time.monotonic()
