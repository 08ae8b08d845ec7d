"""Whether a broker can be reached at an address, and when not, why: one line that names the key and says what to do.

In charge of finding the first step that fails: the name, the connection, TLS, Kafka itself, the log-in, the first
question. aiokafka tries all addresses in turn, for a time-out each, and tells the reasons only to its log; so a
start asks here first. Belongs to no topic; a few seconds at most. Next: `mail/log/kafka/topics.py`.
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
from mail.log.kafka import greeting
from mail.log.kafka.access import FAULTS, Access, reason
from mail.log.kafka.greeting import Greeting, NoBroker

REACH_SECONDS = 6.0  # one address, all steps
_ASIDE_SECONDS = 1.5  # looking what else might listen there

_LOG_IN = "log.sasl_mechanism"
_USER = "log.sasl_username, log.sasl_password"


@dataclass(frozen=True, slots=True)
class Reached:
    """`seconds` of one question; `brokers` as (id, "HOST:PORT") as the cluster names them; the end of its certificate
    when there is TLS.
    """

    address: str
    seconds: float
    greeting: Greeting
    brokers: tuple[tuple[int, str], ...]
    certificate_until: datetime | None


@dataclass(frozen=True, slots=True)
class Unreached:
    """`what` goes behind "ADDRESS"; `key` is the setting it is about. `may_pass`: a broker that starts there, or a name
    that appears in DNS, mends it without a change of the settings.
    """

    address: str
    key: str
    what: str
    advice: str
    may_pass: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.address} {self.what}: {self.advice}"


class _Step(Exception):
    def __init__(self, key: str, what: str, advice: str, *, may_pass: bool = False) -> None:
        super().__init__(what)
        self.words = (key, what, advice, may_pass)


async def reach(access: Access, address: str, seconds: float = REACH_SECONDS) -> Reached | Unreached:
    """Go through all steps with one address, "HOST:PORT"."""
    try:
        async with asyncio.timeout(seconds):
            return await _reach(access, address)
    except _Step as step:
        return Unreached(address, *step.words)
    except TimeoutError:
        return Unreached(
            address,
            "log.url",
            f"does not answer within {seconds:.0f} s",
            "start a broker there, let the network through, or correct log.url",
            may_pass=True,
        )


async def reach_any(access: Access) -> None:
    """Return as soon as one broker can be reached. Raises LogUnusable with what is wrong with the settings at the first
    address that shows it; else LogNotReady with what is wrong at the first address.
    """
    asking = [asyncio.create_task(reach(access, address), name=f"reach {address}") for address in access.servers]
    try:
        for answer in asyncio.as_completed(asking):
            if isinstance(await answer, Reached):
                for address, task in zip(access.servers, asking, strict=True):
                    if not task.done():
                        access.silent.suspect(*endpoint.parse(address))  # or each client would begin with it
                return
        answers = [each for task in asking if isinstance(each := task.result(), Unreached)]
        first = min(answers, key=lambda each: each.may_pass)
        more = f" (and {len(asking) - 1} more: see `eilpost doctor`)" if len(asking) > 1 else ""
        raise (LogNotReady if first.may_pass else LogUnusable)(f"{first}{more}")
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def explain(access: Access, error: BaseException) -> str:
    """Why the log could not be opened, after one broker was reached: often an address that brokers give themselves."""
    if isinstance(error, LogNotAuthorized):
        return str(error)
    try:
        await reach_any(access)
    except LogUnusable as unreached:
        return str(unreached)
    answers = await asyncio.gather(*(reach(access, address) for address in access.servers))
    for wrong in await unreached_brokers(access, answers):
        return str(wrong)
    return (
        f"log.url: {access.where}: the brokers do not serve us ({reason(error)}): see `eilpost doctor` and the"
        " brokers' own logs"
    )


async def unreached_brokers(access: Access, answers: Sequence[Reached | Unreached]) -> list[Unreached]:
    """Those that the cluster names by an address that does not lead to them from here; `answers` of our addresses."""
    named = {broker for answer in answers if isinstance(answer, Reached) for broker in answer.brokers}
    there = sorted(broker for broker in named if broker[1] not in access.servers)
    found = await asyncio.gather(*(reach(access, address) for _, address in there))
    return [
        Unreached(
            each.address,
            "log.url",
            f"{each.what}, and broker {number} says that it is there",
            "correct advertised.listeners of that broker, or this machine's network",
        )
        for (number, _), each in zip(there, found, strict=True)
        if isinstance(each, Unreached)
    ]


# --- the steps


async def _reach(access: Access, address: str) -> Reached:
    host, port = endpoint.parse(address)
    context: ssl.SSLContext | None = access.security.get("ssl_context")
    await _find(host, port)
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except OSError as error:
        await _not_connected(error, host, port, tls=context is not None)
    try:
        until = _certificate_until(writer)
        try:
            found, seconds = await _greet(reader, writer)
        except (NoBroker, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            await _no_greeting(error, host, port, tls=context is not None)
    finally:
        writer.transport.abort()
    return Reached(address, seconds, found, await _log_in(access, host, port), until)


async def _find(host: str, port: int) -> None:
    try:
        await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise _Step(
            "log.url",
            f"has a name that leads nowhere ({what})",
            "correct log.url, or the DNS of this machine",
            may_pass=True,
        ) from None


async def _not_connected(error: OSError, host: str, port: int, *, tls: bool) -> NoReturn:
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message or str(error)
        key, advice, may_pass = "log.tls_ca", "name a PEM file with the authority that signed it in log.tls_ca", False
        if "expired" in said:
            key, advice, may_pass = "log.tls", "renew it at the broker", True
        elif "mismatch" in said or "not valid for" in said:
            key, advice = "log.url", "write the broker's name in log.url as its certificate has it"
        raise _Step(key, f"shows a certificate that is not to be trusted ({said})", advice, may_pass=may_pass)
    if tls and (isinstance(error, ssl.SSLError | ConnectionResetError)):
        if await _greets(host, port, None):
            raise _Step("log.tls", "does not talk TLS", "set log.tls = false, or name a port with TLS in log.url")
        raise _Step("log.url", "is no Kafka broker with TLS", "correct log.url")
    if isinstance(error, ConnectionRefusedError):
        raise _Step("log.url", "refuses the connection", "start a broker there, or correct log.url", may_pass=True)
    what = error.strerror or str(error)
    raise _Step(
        "log.url", f"cannot be connected to ({what})", "correct log.url, or this machine's network", may_pass=True
    )


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Greeting, float]:
    began = perf_counter()
    writer.write(greeting.question())
    async with asyncio.timeout(REACH_SECONDS / 2):
        size = greeting.size_of(await reader.readexactly(4))
        answer = await reader.readexactly(size)
    return greeting.read(answer), perf_counter() - began


async def _no_greeting(error: Exception, host: str, port: int, *, tls: bool) -> NoReturn:
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        raise _Step("log.tls_cert", f"wants a certificate of ours ({error.reason})", "set log.tls_cert and log.tls_key")
    if not tls and await _greets(host, port, _trusting()):
        raise _Step("log.tls", "talks TLS", "set log.tls = true, and log.tls_ca where its authority is your own")
    if isinstance(error, TimeoutError):
        raise _Step(
            "log.url", "takes the connection and says nothing", "correct log.url, or mend the broker", may_pass=True
        )
    raise _Step("log.url", "is something else than a Kafka broker", "correct log.url")


def _trusting() -> ssl.SSLContext:
    """To find out what listens, nothing else: nothing of ours is told over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _greets(host: str, port: int, context: ssl.SSLContext | None) -> bool:
    with suppress(NoBroker, OSError, asyncio.IncompleteReadError, TimeoutError):
        async with asyncio.timeout(_ASIDE_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                await _greet(reader, writer)
            finally:
                writer.transport.abort()
            return True
    return False


def _certificate_until(writer: asyncio.StreamWriter) -> datetime | None:
    certificate = writer.get_extra_info("peercert")
    if not certificate:
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)


async def _log_in(access: Access, host: str, port: int) -> tuple[tuple[int, str], ...]:
    """Log in if we are to, and ask for the brokers, as every client does."""
    mechanism = access.security.get("sasl_mechanism")
    connection: Any = None
    try:
        connection = await create_conn(
            host, port, client_id="eilpost", request_timeout_ms=int(REACH_SECONDS * 1000), **access.security
        )
        answer = await connection.send(MetadataRequest([]))
    except errors.UnsupportedSaslMechanismError:
        raise _Step(
            _LOG_IN,
            f"does not take {mechanism}",
            "set log.sasl_mechanism to one that the broker has in sasl.enabled.mechanisms",
        ) from None
    except errors.IllegalSaslStateError:
        raise _Step(_LOG_IN, "asks for no log-in", 'set log.sasl_mechanism = "", or name another port') from None
    except errors.SaslAuthenticationFailed as error:
        said = " ".join(map(str, error.args)) or reason(error)
        raise _Step(_USER, f"refuses the log-in ({said})", "correct the name or the password") from None
    except (*FAULTS, ValueError, KeyError) as error:  # of a SCRAM answer that is none
        if mechanism is None:
            raise _Step(
                _LOG_IN, "wants a log-in", "set log.sasl_mechanism, log.sasl_username and log.sasl_password"
            ) from None
        raise _Step(_USER, f"refuses the log-in ({reason(error)})", "correct the name or the password") from None
    finally:
        if connection is not None:
            connection.close()
    brokers: Sequence[Any] = answer.brokers
    return tuple((each[0], endpoint.format(each[1], each[2])) for each in brokers)
