"""Source addresses of outgoing connections (`delivery.source_addresses`), used round robin within an address family.

An address that cannot be bound, or that the system replaces with another one, is suspended with a back-off and checked
again by `recheck_suspended`; no other address is used instead.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain

import structlog

from mail.backoff import backoff
from mail.reply import Reply
from mail.telemetry.delivery import SOURCES_SUSPENDED

logger = structlog.get_logger()

BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 30.0, 600.0
# Linux: the kernel chooses the port at connect(), so that two connections to different servers may share one.
_BIND_ADDRESS_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # nothing is wrong with the address


class NoSource(Exception):
    """No source address can be used for this destination now; `reply` is what the delivery is deferred with."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


@dataclass(slots=True)
class _Source:
    address: str
    pauses: Iterator[float] | None = None  # None: not suspended
    retry_at: float = 0.0


class SourceAddresses:
    """The source addresses of this process. Without any, the system chooses the address of each connection."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._sources: dict[int, list[_Source]] = {}
        for address in map(ip_address, addresses):
            self._sources.setdefault(address.version, []).append(_Source(str(address)))
        self._update_gauge()

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(source.address for source in self._all())

    def source_refusal(self, ip: str, among: Sequence[str] | None = None) -> Reply | None:
        """Why there is no source address (`among` these) for a connection to `ip` now; None: there is one."""
        sources = [source for source in self._sources.get(_family(ip), []) if among is None or source.address in among]
        if not self._sources or any(source.pauses is None for source in sources):
            return None
        state = "are suspended: they cannot be used" if sources else "are missing in delivery.source_addresses"
        return Reply(451, "4.4.0", f"No source address to connect from: those for IPv{_family(ip)} {state}")

    async def connect(self, among: Sequence[str], protocol: Callable[[], asyncio.Protocol], ip: str, port: int) -> None:
        """Connect to `ip` from the next source address `among` these; if there are none, from one that the system
        chooses. Raises NoSource, OSError.
        """
        loop = asyncio.get_running_loop()
        if not among:
            await loop.create_connection(protocol, ip, port)
            return
        while True:
            source, sock = self._next_socket(among, ip, loop.time())
            try:
                await loop.sock_connect(sock, (ip, port))
                if (actual := local_address(sock)) == ip_address(source.address):
                    await loop.create_connection(protocol, sock=sock)
                    return
            except BaseException:
                sock.close()
                raise
            sock.close()
            if source.pauses is None:  # another connection may have suspended it in the meantime
                self._suspend(source, f"the system connects from {actual} instead", loop.time())

    def _next_socket(self, among: Sequence[str], ip: str, now_seconds: float) -> tuple[_Source, socket.socket]:
        sources = self._sources.get(_family(ip), [])
        for source in list(sources):
            if source.pauses is not None or source.address not in among:
                continue
            sources.remove(source)
            sources.append(source)
            try:
                return source, bind(source.address)
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    raise
                self._suspend(source, f"cannot be bound: {error.strerror}", now_seconds)
        reply = self.source_refusal(ip, among)
        assert reply is not None
        raise NoSource(reply)

    def recheck_suspended(self, now_seconds: float) -> None:
        """Check suspended addresses after their back-off and resume the usable ones."""
        for source in self._all():
            if source.pauses is None or now_seconds < source.retry_at:
                continue
            if (reason := unusable_reason(source.address)) is not None:
                self._suspend(source, reason, now_seconds)
            else:
                source.pauses = None
                logger.info("source address resumed", source=source.address)
                self._update_gauge()

    def _suspend(self, source: _Source, reason: str, now_seconds: float) -> None:
        if source.pauses is None:
            advice = "check delivery.source_addresses"
            logger.error("source address suspended", source=source.address, reason=reason, advice=advice)
            source.pauses = backoff(BACKOFF_SECONDS, BACKOFF_SECONDS_MAX)
        source.retry_at = now_seconds + next(source.pauses)
        self._update_gauge()

    def _update_gauge(self) -> None:
        SOURCES_SUSPENDED.set(sum(source.pauses is not None for source in self._all()))

    def _all(self) -> Iterator[_Source]:
        return chain.from_iterable(self._sources.values())


def bind(address: str) -> socket.socket:
    """A non-blocking TCP socket bound to `address`, any port. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if hasattr(socket, "SO_DOMAIN"):  # Linux
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        sock.bind((address, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def unusable_reason(address: str) -> str | None:
    """Why no connection can be made from `address`; None: it can be bound and is no broadcast address."""
    try:
        bind(address).close()
    except OSError as error:
        return f"cannot be bound: {error.strerror}"
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            udp.connect((address, 9))  # sends nothing; without SO_BROADCAST, EACCES for a broadcast address
        except OSError as error:
            if error.errno == errno.EACCES:
                return "is a broadcast address"
    return None


def local_address(connected: socket.socket) -> IPv4Address | IPv6Address:
    """The address that `connected` sends from, without the zone of a link-local one."""
    return ip_address(connected.getsockname()[0].partition("%")[0])


def _family(ip: str) -> int:
    return 6 if ":" in ip else 4
