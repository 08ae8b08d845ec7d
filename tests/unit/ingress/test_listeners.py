"""Several listeners in one process, each with its own policy, TLS and session."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import uvloop

from ingress import session as actions
from ingress.access_policy import parse_networks
from ingress.framer import Malformed
from ingress.session import Actions, Session
from mail.directory import Snapshot
from mail.reply import Reply
from mail.service import ServiceError
from tests.support.builders.certificates import Authority
from tests.support.docs.metrics import value
from tests.support.servers.ingress import RunningIngress, SmtpClient

AUTH_LINE_MAX = 12_288  # RFC 4954 section 4


class ExtendedSession(Session):
    """With STARTTLS, and an AUTH that takes every response."""

    def receive(self, line: bytes | Malformed, snapshot: Snapshot, **facts: bool) -> Actions:
        match line:
            case b"STARTTLS":
                yield Reply(220, "2.0.0", "Ready to start TLS")
                yield actions.StartTls()
            case b"AUTH LOGIN":
                for challenge in ("VXNlcm5hbWU6", "UGFzc3dvcmQ6"):
                    yield Reply(334, "", challenge)
                    response = yield actions.ReadLine(AUTH_LINE_MAX)
                    if isinstance(response, Malformed):
                        yield Reply(500, "5.5.6", "Authentication exchange line is too long")
                        return
                    assert len(response) < AUTH_LINE_MAX
                yield Reply(235, "2.7.0", f"{len(response)} octets")
            case _:
                yield from super().receive(line, snapshot, **facts)


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS of a server and of its client."""
    authority = Authority.new()
    pair = authority.issue("server", timedelta(days=1))
    path = tmp_path / "server.pem"
    path.write_bytes(pair.certificate + pair.key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cadata=authority.pem.decode())


async def with_listener(
    test: Callable[[RunningIngress], Awaitable[None]], tls: ssl.SSLContext, *, implicit: bool
) -> None:
    server = RunningIngress()
    (mx,) = server.ingress.listeners
    other = replace(mx, name="other", tls=tls, implicit_tls=implicit, session=ExtendedSession)
    server.ingress.listeners.append(other)
    await server.start()
    try:
        await test(server)
    finally:
        await server.close()


async def wait_for_end(server: RunningIngress) -> None:
    async with asyncio.timeout(10):
        while server.ingress.connections:
            await asyncio.sleep(0.01)


async def test_second_listener_has_its_own_policy_and_metrics() -> None:
    server = RunningIngress(relay_networks=[])
    (mx,) = server.ingress.listeners
    policy = replace(
        mx.policy,
        hostname="submission.example.test",
        relay_networks=parse_networks(["127.0.0.0/8"]),
        sender_must_resolve=False,
        max_size=1000,
    )
    submission = replace(mx, name="submission", setting="ingress.submission_listen", policy=policy)
    server.ingress.listeners.append(submission)
    await server.start()
    ended = {name: value("smtp_sessions_total", listener=name, end="disconnected") for name in ("mx", "submission")}
    assert value("smtp_sessions_total", listener="submission", end="quit") == 0
    try:
        received = []
        for name in ("mx", "submission"):
            client = await server.connect(name)
            session = [await client.read_reply()]
            for line in ("EHLO x", "MAIL FROM:<a@nowhere.test>", "MAIL FROM:<>", "RCPT TO:<x@remote.test>"):
                session.append(await client.command(line))
            received.append(session)
            assert value("smtp_connections", listener=name) == 1
            client.writer.close()
            await wait_for_end(server)
            assert value("smtp_connections", listener=name) == 0
            assert value("smtp_sessions_total", listener=name, end="disconnected") == ended[name] + 1
    finally:
        await server.close()
    mx_session, submission_session = received
    assert mx_session[0] == "220 mx.example.test ESMTP eilpost"
    assert submission_session[0] == "220 submission.example.test ESMTP eilpost"
    assert "SIZE 26214400" in mx_session[1]
    assert "SIZE 1000" in submission_session[1]
    assert [reply[:9] for reply in mx_session[2:]] == ["550 5.1.8", "250 2.1.0", "550 5.7.1"]
    assert [reply[:9] for reply in submission_session[2:]] == ["250 2.1.0", "503 5.5.1", "250 2.1.5"]


async def test_address_in_use_names_the_key_of_its_listener() -> None:
    server = RunningIngress()
    (mx,) = server.ingress.listeners
    first = RunningIngress()
    await first.start()
    try:
        host, port = first.ingress.bound_addresses["mx"]
        server.ingress.listeners.append(replace(mx, setting="ingress.other", address=f"{host}:{port}"))
        with pytest.raises(ServiceError, match=r"^ingress\.other: .* EILPOST_INGRESS__OTHER=HOST:PORT$"):
            await server.start()
        host, port = server.ingress.bound_addresses["mx"]
        with pytest.raises(OSError, match="onnect"):  # the first listener is closed
            await asyncio.open_connection(host, port)
    finally:
        await first.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_listener_with_implicit_tls_accepts_mail_and_closes_without_a_warning(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    run: Callable[[Awaitable[None]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(server: RunningIngress) -> None:
        client = await server.connect("other", contexts[1])
        await client.start_data()
        assert (await client.command("Subject: x\r\n\r\nbody\r\n.")).startswith("250")
        assert b" with ESMTPS id " in server.content()
        client.writer.close()  # without QUIT
        await wait_for_end(server)
        plain = await server.connect("mx")  # half-closed: the reply is still sent
        await plain.read_reply()
        plain.send(b"NOOP\r\n")
        plain.writer.write_eof()
        assert (await plain.read_to_end()).startswith(b"250")
        await wait_for_end(server)

    with caplog.at_level(logging.WARNING):
        run(with_listener(test, contexts[0], implicit=True))
    assert caplog.messages == []


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_nothing_survives_starttls(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], run: Callable[[Awaitable[None]], None]
) -> None:
    """RFC 3207 section 4.2: neither what the client sent ahead in clear (CVE-2011-0411) nor its EHLO."""

    async def test(server: RunningIngress) -> None:
        client = await server.connect("other")
        await client.read_reply()
        await client.command("EHLO client.test")
        (connection,) = server.ingress.connections
        injected = b"EHLO injected.test\r\nMAIL FROM:<alice@example.test>\r\n" + b"x" * 100
        client.send(b"STARTTLS\r\n" + injected)
        assert await client.read_reply() == "220 2.0.0 Ready to start TLS"
        assert connection.framer.pipelined_bytes == 0
        await client.writer.start_tls(contexts[1], server_hostname="127.0.0.1")
        assert await client.command("MAIL FROM:<alice@example.test>") == "503 5.5.1 Send EHLO or HELO first"
        await client.command("EHLO client.test")
        for line in ("MAIL FROM:<alice@example.test>", "RCPT TO:<bob@example.test>"):
            assert (await client.command(line)).startswith("250")
        assert (await client.command("DATA")).startswith("354")
        assert (await client.command(f"Subject: x\r\n\r\n{'x' * 200_000}\r\n.")).startswith("250")
        assert b"client.test" in server.content()[:30]
        assert b" with ESMTPS id " in server.content()
        assert (await client.command("QUIT")).startswith("221")
        await wait_for_end(server)

    run(with_listener(test, contexts[0], implicit=False))


async def test_failed_handshake_ends_the_session(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def test(server: RunningIngress) -> None:
        client = await server.connect("other")
        await client.read_reply()
        await client.command("STARTTLS")
        client.send(b"EHLO in clear\r\n")
        assert b"250" not in await client.read_to_end()
        await wait_for_end(server)

    await with_listener(test, contexts[0], implicit=False)


async def test_line_that_is_no_command_has_its_own_limit(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def log_in(client: SmtpClient, *responses: bytes) -> str:
        reply = await client.command("AUTH LOGIN")
        for response in responses:
            assert reply.startswith("334 ")
            for start in range(0, len(response), 5000):  # in several packets
                client.send(response[start : start + 5000])
                await asyncio.sleep(0)
            client.send(b"\r\n")
            reply = await client.read_reply()
        return reply

    async def test(server: RunningIngress) -> None:
        client = await server.connect("other")
        await client.read_reply()
        longest = b"x" * (AUTH_LINE_MAX - 2)
        assert await log_in(client, b"user", longest) == "235 2.7.0 12286 octets"
        assert await log_in(client, b"MAIL FROM:<>", b"QUIT") == "235 2.7.0 4 octets"  # no commands
        assert await log_in(client, longest + b"x") == "500 5.5.6 Authentication exchange line is too long"
        assert await client.command(f"NOOP {'x' * 600}") == "500 5.5.2 Line too long"  # the limit of commands again
        assert (await client.command("AUTH LOGIN")).startswith("334 ")
        client.send(b"half a response")
        server.stop.set()  # a session that waits for a line is idle
        assert await client.read_reply() == "421 4.3.2 Shutting down, try again later"
        assert await client.read_to_end() == b""

    await with_listener(test, contexts[0], implicit=False)
