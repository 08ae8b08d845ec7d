"""Doctor checks of listen addresses (free, or used by eilpost) and of source addresses (can be bound).

A port is bound for a moment; the server on an occupied port is identified by its greeting or by `/readyz`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from typing import Any

import orjson

from delivery.source_addresses import unusable_reason
from eilpost.doctor.finding import Finding, fail, ok, warn
from mail.endpoint import parse
from mail.settings import Settings

_READ_SECONDS = 3.0
_READ_BYTES = 1 << 16
_KEYS = (("ingress", "smtp_listen"), ("mailstore", "pop3_listen"), ("http", "listen"))
_GREETINGS = {"ingress.smtp_listen": b" ESMTP eilpost", "mailstore.pop3_listen": b"+OK eilpost POP3"}
_READYZ_REQUEST = b"GET /readyz HTTP/1.1\r\nHost: doctor\r\nConnection: close\r\n\r\n"


async def examine(settings: Settings) -> list[Finding]:
    addresses = [(f"{section}.{key}", str(getattr(getattr(settings, section), key))) for section, key in _KEYS]
    return [
        *await asyncio.gather(*(_port_finding(key, where) for key, where in addresses if where)),
        *sources(settings),
    ]


def sources(settings: Settings) -> list[Finding]:
    """Whether each of `delivery.source_addresses` can be bound; no connection is made."""
    findings = []
    for address in settings.delivery.source_addresses:
        what = f"source {address}"
        fault = unusable_reason(address)
        if fault is not None:
            advice = "assign the address to an interface of this machine, or correct delivery.source_addresses"
            findings.append(fail(what, f"{fault}: no mail is sent from it", advice))
        else:
            findings.append(ok(what, "can be bound"))
    return findings


async def _port_finding(key: str, where: str) -> Finding:
    what, other = f"port {key}", f"set {key} to another address"
    host, port = parse(where)
    try:
        family, _, _, _, address = (await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM))[
            0
        ]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return await _taken_finding(key, what, where, other)
        advice = "run as root or with CAP_NET_BIND_SERVICE, or use a port of 1024 or higher"
        return fail(what, f"{where}: {error.strerror or error}", advice if error.errno == errno.EACCES else other)
    return ok(what, f"{where} is free")


async def _taken_finding(key: str, what: str, where: str, other: str) -> Finding:
    response = await _read_response(where, _READYZ_REQUEST if key == "http.listen" else b"")
    if key == "http.listen":
        ready = _readiness(response)
        if ready is not None:
            roles = ", ".join(ready.get("roles", {})) or "none"
            if ready.get("ready"):
                return ok(what, f"{where}: eilpost is running and ready: {roles}")
            reasons = "; ".join(map(str, ready.get("reasons", [])))
            return warn(what, f"{where}: eilpost is running and not ready: {reasons}", "see its log")
    elif _GREETINGS[key] in response:
        return ok(what, f"{where}: eilpost is running")
    if key == "ingress.smtp_listen" and response.startswith(b"421"):
        return warn(
            what, f"{where}: the server replies {response[:80].decode(errors='replace').strip()}", "see its log"
        )
    if not response:
        # It may be an overloaded eilpost.
        return warn(
            what,
            f"{where}: the server sends no greeting within {_READ_SECONDS:.0f} s",
            f"find the process that listens there, or {other}",
        )
    return fail(what, f"{where} is in use by another program", f"stop that program, or {other}")


async def _read_response(where: str, request: bytes) -> bytes:
    """The response to `request`, up to its end; without a request, the first line."""
    with suppress(OSError, TimeoutError, asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        async with asyncio.timeout(_READ_SECONDS):
            reader, writer = await asyncio.open_connection(*parse(where))
            try:
                if not request:
                    return await reader.readuntil(b"\n")
                writer.write(request)
                answer = b""
                while len(answer) < _READ_BYTES and (more := await reader.read(_READ_BYTES)):
                    answer += more
                return answer
            finally:
                writer.transport.abort()
    return b""


def _readiness(answer: bytes) -> dict[str, Any] | None:
    """The body of an HTTP response if it is eilpost's `/readyz`."""
    try:
        body = orjson.loads(answer.partition(b"\r\n\r\n")[2])
    except ValueError:
        return None
    return body if isinstance(body, dict) and "ready" in body and "roles" in body else None
