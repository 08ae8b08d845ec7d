"""Validators of settings: host names, addresses, URLs, prefixes. ValueErrors name the expected form."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path

from mail import endpoint
from mail.address import AddressError, parse_domain
from mail.spool import bucket_url

# URL schemes of the adapters, by section.
SCHEMES: Mapping[str, Mapping[str, str]] = {
    "log": {"embedded": '"embedded:FILE"', "kafka": '"kafka://HOST:PORT,..."', "memory": '"memory:"'},
    "spool": {"file": '"file:DIRECTORY"', "memory": '"memory:"', **bucket_url.SCHEMES},
    "directory": {"file": '"file:FILE"'},
    "mailboxes": {"maildir": '"maildir:DIRECTORY"', "memory": '"memory:"'},
}

# Kafka allows 249 characters in a topic name: the prefix, a tenant of at most 64 characters and the longest topic.
PREFIX_MAX = 249 - 64 - len(".dispatched")

_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def host_name(text: str) -> None:
    try:
        parse_domain(text)
    except AddressError as error:
        raise ValueError('a host name is expected, like "mx.example.test"') from error


def topic_prefix(text: str) -> None:
    """A prefix of valid Kafka topic names."""
    invalid = re.search(r"[^A-Za-z0-9._-]", text)
    if invalid is not None:
        raise ValueError(f"letters, digits, '.', '_' and '-' are expected (Kafka topic names), not {invalid[0]!r}")
    if len(text) > PREFIX_MAX:
        raise ValueError(f"at most {PREFIX_MAX} characters are expected (Kafka topic names), not {len(text)}")


def adapter_url(url: str, schemes: Mapping[str, str]) -> None:
    scheme, colon, rest = url.partition(":")
    expected = f"{' or '.join(schemes.values())} is expected"
    if not colon or scheme not in schemes:
        raise ValueError(expected)
    if scheme in bucket_url.SCHEMES:
        bucket_url.parse_bucket(url)
        return
    if scheme != "memory" and not rest.strip():
        raise ValueError(f"a path is missing after {scheme}: - {expected}")
    if "\0" in rest:
        raise ValueError("a path without a NUL character is expected")
    if scheme == "embedded" and not Path(rest).name:
        raise ValueError(f"a file is missing after {scheme}: - {expected}")
    if scheme == "kafka":
        endpoint.parse_brokers(url)


def source_address(text: str) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if (
        address is None
        or address.is_unspecified
        or address.is_multicast
        or address == _BROADCAST
        or getattr(address, "scope_id", None) is not None
        or getattr(address, "ipv4_mapped", None) is not None
    ):
        raise ValueError('an IPv4 or IPv6 address of this machine is expected, like "192.0.2.10" or "2001:db8::10"')


def own_address(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError('an IPv4 or IPv6 address is expected, like "192.0.2.10" or "2001:db8::10"') from error


def normalize_ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


# The largest blocks of one operator; the networks of _PRIVATE are larger, but not part of the Internet.
_SHORTEST_PREFIX = {4: 8, 6: 16}
_PRIVATE = (ipaddress.ip_network("fc00::/7"), ipaddress.ip_network("fe80::/10"))


def relay_network(text: str) -> None:
    """A network whose clients may relay; a large part of the Internet is refused. Raises ValueError."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        reason = " (it has host bits set)" if "host bits" in str(error) else ""
        raise ValueError(f'a network is expected, like "10.0.0.0/8" or "::1/128"{reason}') from error
    shortest = _SHORTEST_PREFIX[network.version]
    if network.prefixlen < shortest and network not in _PRIVATE:
        raise ValueError(f"a network of /{shortest} or longer is expected: a larger network makes an open relay")


def name_server(text: str) -> tuple[str, int]:
    """`"127.0.0.1:5353"`, `"[::1]:53"` or a bare IP address (port 53). Raises ValueError."""
    try:
        return str(ipaddress.ip_address(text)), 53
    except ValueError:
        pass
    try:
        host, port = endpoint.parse(text)
        return str(ipaddress.ip_address(host)), port
    except ValueError as error:
        raise ValueError('an IP address with a port is expected, like "127.0.0.1:5353"') from error
