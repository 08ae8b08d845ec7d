"""Doctor checks of listen addresses (free, or used by eilpost) and of source addresses (can be bound).

A port is bound for a moment; the server on an occupied port is identified by its greeting or by `/readyz`.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from typing import Any

import orjson

from delivery.source_addresses import unusable_reason
from eilpost.doctor.finding import Finding, fail, ok, warn
from eilpost.listen import HTTP, INGRESS, POP3, ListenSetting, bind_error
from mail.endpoint import parse
from mail.settings import Settings

_READ_SECONDS = 3.0
_READ_BYTES = 1 << 16
_GREETINGS = {INGRESS: b" ESMTP eilpost", POP3: b"+OK eilpost POP3"}
_READYZ_REQUEST = b"GET /readyz HTTP/1.1\r\nHost: doctor\r\nConnection: close\r\n\r\n"


async def examine(settings: Settings) -> list[Finding]:
    served = {setting: setting.address(settings) for setting in (INGRESS, POP3, HTTP)}
    ports = await asyncio.gather(*(_port_finding(setting, address) for setting, address in served.items() if address))
    return [*ports, *sources(settings)]


def sources(settings: Settings) -> list[Finding]:
    """Whether each of `delivery.source_addresses` can be bound; no connection is made."""
    findings = []
    for address in settings.delivery.source_addresses:
        subject = f"source {address}"
        reason = unusable_reason(address)
        if reason is not None:
            advice = "assign the address to an interface of this machine, or correct delivery.source_addresses"
            findings.append(fail(subject, f"{reason}: no mail is sent from it", advice))
        else:
            findings.append(ok(subject, "can be bound"))
    return findings


async def _port_finding(setting: ListenSetting, address: str) -> Finding:
    subject, other_address = f"port {setting}", f"set {setting} to another address"
    error = await asyncio.to_thread(bind_error, address)
    if error is None:
        return ok(subject, f"{address} is free")
    if error.errno == errno.EADDRINUSE:
        return await _taken_finding(setting, subject, address, other_address)
    privilege = "run as root or with CAP_NET_BIND_SERVICE, or use a port of 1024 or higher"
    advice = privilege if error.errno == errno.EACCES else other_address
    return fail(subject, f"{address}: {error.strerror or error}", advice)


async def _taken_finding(setting: ListenSetting, subject: str, address: str, other_address: str) -> Finding:
    response = await _read_response(address, _READYZ_REQUEST if setting is HTTP else b"")
    if setting is HTTP:
        ready = _readiness(response)
        if ready is not None:
            roles = ", ".join(ready.get("roles", {})) or "none"
            if ready.get("ready"):
                return ok(subject, f"{address}: eilpost is running and ready: {roles}")
            reasons = "; ".join(map(str, ready.get("reasons", [])))
            return warn(subject, f"{address}: eilpost is running and not ready: {reasons}", "see its log")
    elif _GREETINGS[setting] in response:
        return ok(subject, f"{address}: eilpost is running")
    if setting is INGRESS and response.startswith(b"421"):
        reply = response[:80].decode(errors="replace").strip()
        return warn(subject, f"{address}: the server replies {reply}", "see its log")
    if not response:
        text = f"{address}: the server sends no greeting within {_READ_SECONDS:.0f} s"  # an overloaded eilpost, too
        return warn(subject, text, f"find the process that listens there, or {other_address}")
    return fail(subject, f"{address} is in use by another program", f"stop that program, or {other_address}")


async def _read_response(address: str, request: bytes) -> bytes:
    """The response to `request`, up to its end; without a request, the first line."""
    with suppress(OSError, TimeoutError, asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        async with asyncio.timeout(_READ_SECONDS):
            reader, writer = await asyncio.open_connection(*parse(address))
            try:
                if not request:
                    return await reader.readuntil(b"\n")
                writer.write(request)
                response = b""
                while len(response) < _READ_BYTES and (part := await reader.read(_READ_BYTES)):
                    response += part
                return response
            finally:
                writer.transport.abort()
    return b""


def _readiness(response: bytes) -> dict[str, Any] | None:
    """The body of an HTTP response if it is eilpost's `/readyz`."""
    try:
        body = orjson.loads(response.partition(b"\r\n\r\n")[2])
    except ValueError:
        return None
    return body if isinstance(body, dict) and "ready" in body and "roles" in body else None
