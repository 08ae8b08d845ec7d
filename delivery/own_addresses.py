"""Addresses on which this installation receives mail: an exchanger with one of them is this server.

They are those of `ingress.smtp_listen` and `delivery.own_addresses`: inet_interfaces and proxy_interfaces of Postfix.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable


class OwnAddresses:
    """`listen`: host and port of listeners of this machine; a host name is looked up once, as for the listener.
    `others`: address and port as other servers connect to.
    """

    def __init__(self, listen: Iterable[tuple[str, int]] = (), others: Iterable[tuple[str, int]] = ()) -> None:
        self._exact = {(_address(host), port) for host, port in others}
        self._any_local: set[int] = set()  # ports on which every address of this machine is listened on
        for host, port in listen:
            for address in _resolve(host, port):
                if address.is_unspecified:
                    self._any_local.add(port)
                else:
                    self._exact.add((address, port))

    def contains(self, ip: str, port: int) -> bool:
        """Whether a connection to `ip` reaches this installation."""
        return (_address(ip), port) in self._exact or (port in self._any_local and is_local(ip))


def own_names(*names: str) -> frozenset[str]:
    """The names by which a greeting identifies this server; not "localhost" or "localhost.localdomain", the defaults of
    every server that nobody has named.
    """
    lowered = (name.lower().rstrip(".") for name in names)
    return frozenset(name for name in lowered if name.partition(".")[0] != "localhost")


def is_local(ip: str) -> bool:
    """Whether `ip` is an address of this machine. Sends nothing."""
    address = _address(ip)
    if isinstance(address, str):
        return False
    if address.is_loopback:
        return True
    with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            udp.connect((ip, 9))
        except OSError:  # there is no route
            return False
        # The system reaches an address of its own from this address; not so with net.ipv4.ip_nonlocal_bind, which
        # allows to bind to any.
        return _address(udp.getsockname()[0]) == address


def _resolve(host: str, port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    address = _address(host)
    if not isinstance(address, str):
        return [address]
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:  # the listener reports it
        return []
    found = [_address(str(info[4][0])) for info in infos]
    return [address for address in found if not isinstance(address, str)]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | str:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped
