"""Clients that send but do not read: replies wait, memory is bounded, other sessions run."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ingress.connection import Connection
from tests.support.servers.ingress import RunningIngress, SmtpClient, running_ingress, wait_until

_COMMANDS = 30_000


async def _client_that_does_not_read(server: RunningIngress) -> tuple[SmtpClient, Connection]:
    """A client that sends many commands and reads no replies, and its session after reading was paused."""
    client = await server.connect()
    await client.read_reply()
    await client.command("EHLO client.test")
    await client.command("MAIL FROM:<alice@example.test>")
    (session,) = server.ingress._connections
    assert session._client_transport is not None
    session._client_transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.writer.transport.pause_reading()
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(_COMMANDS // 1000):
        client.send(b"RCPT TO:<bob@example.test>\r\n" * 1000)
    await wait_until(
        lambda: session._client_transport is not None and session._client_transport.get_write_buffer_size()
    )
    await wait_until(lambda: session._reading_is_paused)
    return client, session


async def test_client_that_reads_late_gets_every_reply() -> None:
    """An attribute named `_paused` would collide with asyncio's flow control and stop the session forever."""
    async with running_ingress() as server:
        client, session = await _client_that_does_not_read(server)
        for _ in range(50):
            await asyncio.sleep(0.002)
            assert session.framer.pipelined_bytes < 1_000_000
            assert session._client_transport is not None
            assert session._client_transport.get_write_buffer_size() < 200_000
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        session._client_transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.writer.transport.resume_reading()
        for _ in range(_COMMANDS):
            assert await client.reader.readline() == b"250 2.1.5 Recipient ok\r\n"
        assert await client.command("QUIT") == "221 2.0.0 Bye"


async def test_client_that_never_reads_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.connection._LINGER_SECONDS", 0.1)
    async with running_ingress(command_timeout="300ms") as server:
        client, _session = await _client_that_does_not_read(server)
        await wait_until(lambda: not server.ingress._connections)
        client.writer.transport.abort()


async def test_pipelined_commands_do_not_block_other_sessions() -> None:
    async with running_ingress() as server:
        client, other = await server.connect(), await server.connect()
        for each in (client, other):
            await each.read_reply()
            await each.command("EHLO client.test")
        await client.command("MAIL FROM:<alice@example.test>")
        (session,) = (one for one in server.ingress._connections if one._session._mail is not None)
        session.data_received(b"RCPT TO:<bob@example.test>\r\n" * 2000)
        assert (await other.command("NOOP")).startswith("250 ")
        assert session.framer.pipelined_bytes > 0
