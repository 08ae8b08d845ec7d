"""Whether a broker can be reached at an address, and when not, why: one line that names the key and says what to do.

In charge of finding the first step that fails: the name, the connection, TLS, Kafka itself, the log-in, the first
question. aiokafka tries all addresses in turn, for a time-out each, and tells the reasons only to its log; so a
start asks here first. Belongs to no topic; a few seconds at most.
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

CHECK_SECONDS = 6.0  # one address, all steps
_SIDE_PROBE_SECONDS = 1.5  # looking what else might listen there

_LOG_IN = "log.sasl_mechanism"
_CREDENTIALS = "log.sasl_username, log.sasl_password"


@dataclass(frozen=True, slots=True)
class Reachable:
    """`seconds` of one question; `brokers` as (id, "HOST:PORT") as the cluster names them; the end of its certificate
    when there is TLS.
    """

    address: str
    seconds: float
    api_versions: ApiVersions
    brokers: tuple[tuple[int, str], ...]
    certificate_expires: datetime | None


@dataclass(frozen=True, slots=True)
class Unreachable:
    """`what` goes behind "ADDRESS"; `key` is the setting it is about. `may_pass`: a broker that starts there, or a name
    that appears in DNS, mends it without a change of the settings.
    """

    address: str
    key: str
    what: str
    advice: str
    is_transient: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.address} {self.what}: {self.advice}"


class _StepFailed(Exception):
    def __init__(self, key: str, what: str, advice: str, *, is_transient: bool = False) -> None:
        super().__init__(what)
        self.fields = (key, what, advice, is_transient)


async def check_broker(access: Access, address: str, seconds: float = CHECK_SECONDS) -> Reachable | Unreachable:
    """Go through all steps with one address, "HOST:PORT"."""
    try:
        async with asyncio.timeout(seconds):
            return await _check_steps(access, address)
    except _StepFailed as step:
        return Unreachable(address, *step.fields)
    except TimeoutError:
        return Unreachable(
            address,
            "log.url",
            f"does not answer within {seconds:.0f} s",
            "start a broker there, let the network through, or correct log.url",
            is_transient=True,
        )


async def require_broker(access: Access) -> None:
    """Return as soon as one broker can be reached. Raises LogUnusable with what is wrong with the settings at the first
    address that shows it; else LogNotReady with what is wrong at the first address.
    """
    checks = [
        asyncio.create_task(check_broker(access, address), name=f"reach {address}")
        for address in access.bootstrap_servers
    ]
    try:
        for answer in asyncio.as_completed(checks):
            if isinstance(await answer, Reachable):
                for address, task in zip(access.bootstrap_servers, checks, strict=True):
                    if not task.done():
                        access.circuit_breaker.suspect(*endpoint.parse(address))  # or each client would begin with it
                return
        failures = [each for task in checks if isinstance(each := task.result(), Unreachable)]
        first = min(failures, key=lambda each: each.is_transient)
        more = f" (and {len(checks) - 1} more: see `eilpost doctor`)" if len(checks) > 1 else ""
        raise (LogNotReady if first.is_transient else LogUnusable)(f"{first}{more}")
    finally:
        for task in checks:
            task.cancel()
        await asyncio.gather(*checks, return_exceptions=True)


async def explain_failure(access: Access, error: BaseException) -> str:
    """Why the log could not be opened, after one broker was reached: often an address that brokers give themselves."""
    if isinstance(error, LogNotAuthorized):
        return str(error)
    try:
        await require_broker(access)
    except LogUnusable as unreached:
        return str(unreached)
    answers = await asyncio.gather(*(check_broker(access, address) for address in access.bootstrap_servers))
    for wrong in await unreachable_brokers(access, answers):
        return str(wrong)
    return (
        f"log.url: {access.url}: the brokers do not serve us ({error_message(error)}): see `eilpost doctor` and the"
        " brokers' own logs"
    )


async def unreachable_brokers(access: Access, answers: Sequence[Reachable | Unreachable]) -> list[Unreachable]:
    """Those that the cluster names by an address that does not lead to them from here; `answers` of our addresses."""
    named = {broker for answer in answers if isinstance(answer, Reachable) for broker in answer.brokers}
    there = sorted(broker for broker in named if broker[1] not in access.bootstrap_servers)
    found = await asyncio.gather(*(check_broker(access, address) for _, address in there))
    return [
        Unreachable(
            each.address,
            "log.url",
            f"{each.what}, and broker {number} says that it is there",
            "correct advertised.listeners of that broker, or this machine's network",
        )
        for (number, _), each in zip(there, found, strict=True)
        if isinstance(each, Unreachable)
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
        what = getattr(error, "strerror", None) or str(error)
        raise _StepFailed(
            "log.url",
            f"has a name that leads nowhere ({what})",
            "correct log.url, or the DNS of this machine",
            is_transient=True,
        ) from None


async def _raise_connect_error(error: OSError, host: str, port: int, *, tls: bool) -> NoReturn:
    if isinstance(error, ssl.SSLCertVerificationError):
        detail = error.verify_message or str(error)
        key, advice, is_transient = (
            "log.tls_ca",
            "name a PEM file with the authority that signed it in log.tls_ca",
            False,
        )
        if "expired" in detail:
            key, advice, is_transient = "log.tls", "renew it at the broker", True
        elif "mismatch" in detail or "not valid for" in detail:
            key, advice = "log.url", "write the broker's name in log.url as its certificate has it"
        raise _StepFailed(
            key, f"shows a certificate that is not to be trusted ({detail})", advice, is_transient=is_transient
        )
    if tls and (isinstance(error, ssl.SSLError | ConnectionResetError)):
        if await _answers_api_versions(host, port, None):
            raise _StepFailed("log.tls", "does not talk TLS", "set log.tls = false, or name a port with TLS in log.url")
        raise _StepFailed("log.url", "is no Kafka broker with TLS", "correct log.url")
    if isinstance(error, ConnectionRefusedError):
        raise _StepFailed(
            "log.url", "refuses the connection", "start a broker there, or correct log.url", is_transient=True
        )
    what = error.strerror or str(error)
    raise _StepFailed(
        "log.url", f"cannot be connected to ({what})", "correct log.url, or this machine's network", is_transient=True
    )


async def _request_api_versions(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[ApiVersions, float]:
    began = perf_counter()
    writer.write(api_versions.encode_request())
    async with asyncio.timeout(CHECK_SECONDS / 2):
        size = api_versions.response_size(await reader.readexactly(4))
        answer = await reader.readexactly(size)
    return api_versions.decode_response(answer), perf_counter() - began


async def _raise_protocol_error(error: Exception, host: str, port: int, *, tls: bool) -> NoReturn:
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        raise _StepFailed(
            "log.tls_cert", f"wants a certificate of ours ({error.reason})", "set log.tls_cert and log.tls_key"
        )
    if not tls and await _answers_api_versions(host, port, _insecure_context()):
        raise _StepFailed("log.tls", "talks TLS", "set log.tls = true, and log.tls_ca where its authority is your own")
    if isinstance(error, TimeoutError):
        raise _StepFailed(
            "log.url", "takes the connection and says nothing", "correct log.url, or mend the broker", is_transient=True
        )
    raise _StepFailed("log.url", "is something else than a Kafka broker", "correct log.url")


def _insecure_context() -> ssl.SSLContext:
    """To find out what listens, nothing else: nothing of ours is told over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _answers_api_versions(host: str, port: int, context: ssl.SSLContext | None) -> bool:
    with suppress(NotABroker, OSError, asyncio.IncompleteReadError, TimeoutError):
        async with asyncio.timeout(_SIDE_PROBE_SECONDS):
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
    """Log in if we are to, and ask for the brokers, as every client does."""
    mechanism = access.security.get("sasl_mechanism")
    connection: Any = None
    try:
        connection = await create_conn(
            host, port, client_id="eilpost", request_timeout_ms=int(CHECK_SECONDS * 1000), **access.security
        )
        answer = await connection.send(MetadataRequest([]))
    except errors.UnsupportedSaslMechanismError:
        raise _StepFailed(
            _LOG_IN,
            f"does not take {mechanism}",
            "set log.sasl_mechanism to one that the broker has in sasl.enabled.mechanisms",
        ) from None
    except errors.IllegalSaslStateError:
        raise _StepFailed(_LOG_IN, "asks for no log-in", 'set log.sasl_mechanism = "", or name another port') from None
    except errors.SaslAuthenticationFailed as error:
        detail = " ".join(map(str, error.args)) or error_message(error)
        raise _StepFailed(_CREDENTIALS, f"refuses the log-in ({detail})", "correct the name or the password") from None
    except (*CLIENT_ERRORS, ValueError, KeyError) as error:  # of a SCRAM answer that is none
        if mechanism is None:
            raise _StepFailed(
                _LOG_IN, "wants a log-in", "set log.sasl_mechanism, log.sasl_username and log.sasl_password"
            ) from None
        raise _StepFailed(
            _CREDENTIALS, f"refuses the log-in ({error_message(error)})", "correct the name or the password"
        ) from None
    finally:
        if connection is not None:
            connection.close()
    brokers: Sequence[Any] = answer.brokers
    return tuple((each[0], endpoint.format(each[1], each[2])) for each in brokers)
