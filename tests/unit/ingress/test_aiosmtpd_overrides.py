"""Behaviour of aiosmtpd 1.4.6 that `ingress` replaces, one test each. Its timer, limits and disconnects are
tested in `test_session_timeouts`, `test_limits`, `test_slow_readers` and `test_disconnects`.
"""

from __future__ import annotations

import socket

import pytest
from aiosmtpd.smtp import SMTP

from ingress.aiosmtpd_compat import SmtpProtocol
from ingress.connection import Connection
from tests.support.servers.ingress import running_ingress


def test_overridden_methods_exist_in_aiosmtpd() -> None:
    """They are overridden by name; if aiosmtpd renames one, its own method would silently run instead."""
    for name in ("_handle_client", "_reset_timeout", "eof_received", "connection_lost"):
        assert name in vars(SMTP), name
        assert name in vars(SmtpProtocol if name.startswith("_") else Connection), name


async def test_connection_does_not_resolve_or_scan_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("getfqdn was called"))
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        (session,) = server.ingress.connections
        assert dir(session) == []
        assert session._smtp_methods == {}


async def test_exception_gets_generic_451_and_resets_the_transaction() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.start_data()
        server.log.error = ValueError("secret\r\n250 2.0.0 injected")
        assert await client.command("Subject: x\r\n\r\n.") == "451 4.3.0 Local error, try again later"
        assert await client.command("RCPT TO:<bob@example.test>") == "503 5.5.1 Send MAIL first"
        server.log.error = None
        assert (await client.command("MAIL FROM:<>")).startswith("250")
        assert server.in_flight_bytes == 0


async def test_connection_error_of_the_log_does_not_end_the_session() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.start_data()
        server.log.error = ConnectionResetError("broker")
        assert (await client.command(".")).startswith("451 4.3.0")
        assert (await client.command("NOOP")).startswith("250")


async def test_replies_to_pipelined_commands_are_sent_in_one_write() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        client.send(b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nRCPT TO:<x@example.test>\r\nNOOP\r\n")
        first = await client.reader.read(65536)
        assert first.endswith(b"550 5.1.1 <x@example.test>: no such user here\r\n250 2.0.0 Ok\r\n")
