"""Clients that send and do not read: their replies wait, we hold little, and the others have their turn."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ingress.session import SmtpSession
from tests.support.servers.ingress import RunningIngress, SmtpClient, running_ingress, wait_until

_MANY = 30_000


async def _deaf(server: RunningIngress) -> tuple[SmtpClient, SmtpSession]:
    """A client in a transaction that sends more than we hold and does not read, and its session, stopped by that."""
    client = await server.connect()
    await client.read_reply()
    await client.command("EHLO client.test")
    await client.command("MAIL FROM:<alice@example.test>")
    (session,) = server.ingress._sessions
    assert session._client_transport is not None
    session._client_transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.writer.transport.pause_reading()
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(_MANY // 1000):
        client.send(b"RCPT TO:<bob@example.test>\r\n" * 1000)
    await wait_until(
        lambda: session._client_transport is not None and session._client_transport.get_write_buffer_size()
    )
    await wait_until(lambda: session._reading_is_paused)
    return client, session


async def test_a_client_that_reads_late_gets_every_reply() -> None:
    """Asyncio's own `_paused` speaks of writing: a name of ours like it would stop the session for ever."""
    async with running_ingress() as server:
        client, session = await _deaf(server)
        for _ in range(50):
            await asyncio.sleep(0.002)
            assert session.framer.pipelined_bytes < 1_000_000
            assert session._client_transport is not None
            assert session._client_transport.get_write_buffer_size() < 200_000
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        session._client_transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.writer.transport.resume_reading()
        for _ in range(_MANY):
            assert await client.reader.readline() == b"250 2.1.5 Recipient ok\r\n"
        assert await client.command("QUIT") == "221 2.0.0 Bye"


async def test_a_client_that_never_reads_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.session._LINGER_SECONDS", 0.1)
    async with running_ingress(command_timeout="300ms") as server:
        client, _session = await _deaf(server)
        await wait_until(lambda: not server.ingress._sessions)
        client.writer.transport.abort()


async def test_many_pipelined_commands_leave_others_their_turn() -> None:
    async with running_ingress() as server:
        client, other = await server.connect(), await server.connect()
        for each in (client, other):
            await each.read_reply()
            await each.command("EHLO client.test")
        await client.command("MAIL FROM:<alice@example.test>")
        (session,) = (one for one in server.ingress._sessions if one._conversation._mail is not None)
        session.data_received(b"RCPT TO:<bob@example.test>\r\n" * 2000)
        assert (await other.command("NOOP")).startswith("250 ")
        assert session.framer.pipelined_bytes > 0
