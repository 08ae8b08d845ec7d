"""Parsers for listen addresses ("HOST:PORT"), relays ("smtp://HOST:PORT") and broker lists. Pure.

IPv6 addresses are in brackets ("[::1]:25"). Port 0 means any free port and is valid only for listening.
"""

from __future__ import annotations

import ipaddress
import re

from mail.address import AddressError, parse_domain
from mail.masking import masked
from mail.route import RelayProtocol, ToRelay

_ENDPOINT = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:/]+)):([0-9]{1,5})\Z")
_RELAY = re.compile(r"(smtp|lmtp)://([^/]+)\Z")
_EXPECTED = '"HOST:PORT" is expected, like "127.0.0.1:2525", "mx.example.test:25" or "[::1]:25"'


def parse(text: str) -> tuple[str, int]:
    """`"127.0.0.1:2525"` to `("127.0.0.1", 2525)`, `"[::1]:25"` to `("::1", 25)`. Raises ValueError with the expected
    form.
    """
    match = _ENDPOINT.match(text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(_EXPECTED)
    if match[1] is not None:
        try:
            return str(ipaddress.IPv6Address(match[1])), int(match[3])
        except ValueError as error:
            raise ValueError(f"an IPv6 address is expected in the brackets: {_EXPECTED}") from error
    return _host(match[2]), int(match[3])


def _host(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        pass
    try:
        return parse_domain(text.removesuffix("."))
    except AddressError as error:
        raise ValueError(_EXPECTED) from error


def format(host: str, port: int) -> str:
    """The inverse of `parse`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_relay(text: str) -> ToRelay:
    """`"smtp://mail.example.test:25"` or `"lmtp://127.0.0.1:24"`. Raises ValueError with the expected form."""
    if "@" in text:
        raise ValueError(
            '"smtp://HOST:PORT" is expected, without a user name and password: AUTH to relays is not supported'
        )
    match = _RELAY.match(text)
    if match is None:
        raise ValueError('"smtp://HOST:PORT" or "lmtp://HOST:PORT" is expected')
    host, port = parse(match[2])
    if port == 0:
        raise ValueError("a port from 1 to 65535 is expected")
    return ToRelay(host, port, RelayProtocol(match[1]))


def parse_brokers(url: str) -> tuple[str, ...]:
    """`"kafka://h1:9092,h2:9092"` to `("h1:9092", "h2:9092")`. Raises ValueError with the expected form."""
    hosts = url.removeprefix("kafka:")
    if not hosts.startswith("//") or not hosts[2:].strip():
        raise ValueError('brokers are expected, like "kafka://h1:9092,h2:9092"')
    if "@" in hosts:
        raise ValueError(
            'brokers are expected, like "kafka://h1:9092,h2:9092", without a user name and password: set'
            " log.sasl_username and log.sasl_password"
        )
    brokers = tuple(part.strip() for part in hosts[2:].split(","))
    for broker in brokers:
        try:
            _, port = parse(broker)
        except ValueError:
            port = 0
        if not port:
            shown = masked(f"kafka://{broker}").removeprefix("kafka://")
            raise ValueError(f'"{shown}" is not HOST:PORT; brokers are expected, like "kafka://h1:9092,h2:9092"')
    return brokers
