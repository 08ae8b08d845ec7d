"""Connection diagnosis: the first failing step to a broker, as one line that names the setting and the remedy.

The steps are name resolution, connection, TLS, Kafka protocol, authentication and the first request. aiokafka tries all
addresses one after another and reports reasons only to its log, so a start runs these checks first. They take a few
seconds at most.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, NoReturn

from aiokafka import errors
from aiokafka.conn import create_conn
from aiokafka.protocol.metadata import MetadataRequest

from mail import endpoint
from mail.log import LogNotAuthorized, LogNotReady, LogUnusable
from mail.log.kafka import api_versions
from mail.log.kafka.access import CLIENT_ERRORS, Access, error_message
from mail.log.kafka.api_versions import ApiVersions, NotABroker
from mail.log.kafka.timeouts import TIMEOUTS
from mail.tasks import cancel_tasks


@dataclass(frozen=True, slots=True)
class Reachable:
    """A broker that answered: `seconds` of one request, `brokers` as (id, "HOST:PORT") in the cluster's metadata, and
    the expiry of its certificate with TLS.
    """

    address: str
    seconds: float
    api_versions: ApiVersions
    brokers: tuple[tuple[int, str], ...]
    certificate_expires: datetime | None


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A failed check. `reason` follows "ADDRESS"; `key` is the setting concerned. `is_transient`: a broker that starts
    there or a name that appears in DNS fixes it without a change of the settings.
    """

    address: str
    key: str
    reason: str
    advice: str
    is_transient: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.address} {self.reason}: {self.advice}"


class _StepFailed(Exception):
    """The arguments are those of Unreachable after the address."""

    def __init__(self, key: str, reason: str, advice: str, *, is_transient: bool = False) -> None:
        super().__init__(key, reason, advice, is_transient)


async def check_broker(access: Access, address: str) -> Reachable | Unreachable:
    """Run all steps for one address, "HOST:PORT"."""
    try:
        async with asyncio.timeout(TIMEOUTS.diagnosis_seconds):
            return await _check_steps(access, address)
    except _StepFailed as step:
        return Unreachable(address, *step.args)
    except TimeoutError:
        advice = "start a broker there, allow the connection in the network, or correct log.url"
        return Unreachable(
            address, "log.url", f"does not respond within {TIMEOUTS.diagnosis_seconds:.0f} s", advice, is_transient=True
        )


async def require_broker(access: Access) -> None:
    """Return as soon as one broker responds. Raises LogUnusable about the first address whose failure is not transient;
    else LogNotReady about the first address.
    """
    checks = [
        asyncio.create_task(check_broker(access, address), name=f"check {address}")
        for address in access.bootstrap_servers
    ]
    try:
        for result in asyncio.as_completed(checks):
            if isinstance(await result, Reachable):
                for address, task in zip(access.bootstrap_servers, checks, strict=True):
                    if not task.done():
                        access.circuit_breaker.check(*endpoint.parse(address))  # or every client tries it first
                return
        failures = [failure for task in checks if isinstance(failure := task.result(), Unreachable)]
        first = min(failures, key=lambda failure: failure.is_transient)
        more = f" (and {len(checks) - 1} more: see `eilpost doctor`)" if len(checks) > 1 else ""
        raise (LogNotReady if first.is_transient else LogUnusable)(f"{first}{more}")
    finally:
        await cancel_tasks(*checks)


async def explain_failure(access: Access, error: BaseException) -> str:
    """Why the log could not be opened although a broker responded: often a wrong advertised address."""
    if isinstance(error, LogNotAuthorized):
        return str(error)
    try:
        await require_broker(access)
    except LogUnusable as unreachable:
        return str(unreachable)
    checks = await asyncio.gather(*(check_broker(access, address) for address in access.bootstrap_servers))
    for broker in await unreachable_brokers(access, checks):
        return str(broker)
    return (
        f"log.url: {access.url}: the brokers cannot be used ({error_message(error)}): see `eilpost doctor` and the"
        " brokers' own logs"
    )


async def unreachable_brokers(access: Access, checks: Sequence[Reachable | Unreachable]) -> list[Unreachable]:
    """Brokers whose advertised address cannot be reached from here; `checks` are those of the configured addresses."""
    brokers = {broker for check in checks if isinstance(check, Reachable) for broker in check.brokers}
    advertised = sorted(broker for broker in brokers if broker[1] not in access.bootstrap_servers)
    results = await asyncio.gather(*(check_broker(access, address) for _, address in advertised))
    advice = "correct advertised.listeners of that broker, or this machine's network"
    return [
        Unreachable(address, "log.url", f"{result.reason}, but broker {number} advertises this address", advice)
        for (number, address), result in zip(advertised, results, strict=True)
        if isinstance(result, Unreachable)
    ]


# --- the steps


async def _check_steps(access: Access, address: str) -> Reachable:
    host, port = endpoint.parse(address)
    context: ssl.SSLContext | None = access.security.get("ssl_context")
    await _resolve(host, port)
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except OSError as error:
        await _raise_connect_error(error, host, port, tls=context is not None)
    try:
        expires = _certificate_expiry(writer)
        try:
            versions, seconds = await _request_api_versions(reader, writer)
        except (NotABroker, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            await _raise_protocol_error(error, host, port, tls=context is not None)
    finally:
        writer.transport.abort()
    return Reachable(address, seconds, versions, await _authenticate(access, host, port), expires)


async def _resolve(host: str, port: int) -> None:
    try:
        await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        advice = "correct log.url, or the DNS of this machine"
        raise _StepFailed("log.url", f"cannot be resolved ({detail})", advice, is_transient=True) from None


async def _raise_connect_error(error: OSError, host: str, port: int, *, tls: bool) -> NoReturn:
    if isinstance(error, ssl.SSLCertVerificationError):
        detail = error.verify_message or str(error)
        reason, is_expired = f"has a certificate that cannot be trusted ({detail})", "expired" in detail
        key, advice = "log.tls_ca", "set log.tls_ca to a PEM file with the authority that signed it"
        if is_expired:
            key, advice = "log.tls", "renew it at the broker"
        elif "mismatch" in detail or "not valid for" in detail:
            key, advice = "log.url", "set the broker's name in log.url as in its certificate"
        raise _StepFailed(key, reason, advice, is_transient=is_expired)
    if tls and isinstance(error, ssl.SSLError | ConnectionResetError):
        if await _answers_api_versions(host, port, None):
            raise _StepFailed("log.tls", "does not use TLS", "set log.tls = false, or use a port with TLS in log.url")
        raise _StepFailed("log.url", "is not a Kafka broker with TLS", "correct log.url")
    reason, advice = f"cannot be connected to ({error.strerror or error})", "correct log.url, or this machine's network"
    if isinstance(error, ConnectionRefusedError):
        reason, advice = "refuses the connection", "start a broker there, or correct log.url"
    raise _StepFailed("log.url", reason, advice, is_transient=True)


async def _request_api_versions(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[ApiVersions, float]:
    start = perf_counter()
    writer.write(api_versions.encode_request())
    async with asyncio.timeout(TIMEOUTS.diagnosis_seconds / 2):
        size = api_versions.response_size(await reader.readexactly(4))
        response = await reader.readexactly(size)
    return api_versions.decode_response(response), perf_counter() - start


async def _raise_protocol_error(error: Exception, host: str, port: int, *, tls: bool) -> NoReturn:
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        reason = f"requires a client certificate ({error.reason})"
        raise _StepFailed("log.tls_cert", reason, "set log.tls_cert and log.tls_key")
    if not tls and await _answers_api_versions(host, port, _insecure_context()):
        raise _StepFailed("log.tls", "uses TLS", "set log.tls = true, and log.tls_ca for a private authority")
    if isinstance(error, TimeoutError):
        reason, advice = "accepts the connection and does not respond", "correct log.url, or repair the broker"
        raise _StepFailed("log.url", reason, advice, is_transient=True)
    raise _StepFailed("log.url", "is not a Kafka broker", "correct log.url")


def _insecure_context() -> ssl.SSLContext:
    """For a request without secrets, to find out which protocol a server uses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _answers_api_versions(host: str, port: int, context: ssl.SSLContext | None) -> bool:
    with suppress(NotABroker, OSError, asyncio.IncompleteReadError, TimeoutError):
        async with asyncio.timeout(TIMEOUTS.protocol_seconds):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                await _request_api_versions(reader, writer)
            finally:
                writer.transport.abort()
            return True
    return False


def _certificate_expiry(writer: asyncio.StreamWriter) -> datetime | None:
    certificate = writer.get_extra_info("peercert")
    if not certificate:
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)


async def _authenticate(access: Access, host: str, port: int) -> tuple[tuple[int, str], ...]:
    """Authenticate if configured, and request the brokers, as every client does."""
    mechanism = access.security.get("sasl_mechanism")
    connection: Any = None
    try:
        timeout_ms = int(TIMEOUTS.diagnosis_seconds * 1000)
        connection = await create_conn(
            host, port, client_id="eilpost", request_timeout_ms=timeout_ms, **access.security
        )
        brokers: Sequence[Any] = (await connection.send(MetadataRequest([]))).brokers
    except errors.UnsupportedSaslMechanismError:
        advice = "set log.sasl_mechanism to one of the broker's sasl.enabled.mechanisms"
        raise _StepFailed("log.sasl_mechanism", f"does not support {mechanism}", advice) from None
    except errors.IllegalSaslStateError:
        advice = 'set log.sasl_mechanism = "", or use another port'
        raise _StepFailed("log.sasl_mechanism", "does not use authentication", advice) from None
    except (*CLIENT_ERRORS, ValueError, KeyError) as error:  # the last two: of an invalid SCRAM response
        if mechanism is None:
            advice = "set log.sasl_mechanism, log.sasl_username and log.sasl_password"
            raise _StepFailed("log.sasl_mechanism", "requires authentication", advice) from None
        detail = error_message(error)
        if isinstance(error, errors.SaslAuthenticationFailed):
            detail = " ".join(map(str, error.args)) or detail
        key, advice = "log.sasl_username, log.sasl_password", "correct the user name or the password"
        raise _StepFailed(key, f"refuses the credentials ({detail})", advice) from None
    finally:
        if connection is not None:
            connection.close()
    return tuple((number, endpoint.format(host, port)) for number, host, port, *_ in brokers)
