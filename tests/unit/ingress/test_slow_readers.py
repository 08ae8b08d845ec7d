"""Clients that send but do not read: replies wait, memory is bounded, other sessions run."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ingress.connection import Connection
from tests.support.servers.ingress import RunningIngress, SmtpClient, running_ingress
from tests.support.servers.ports import wait_until

_COMMANDS = 30_000


async def _client_that_does_not_read(server: RunningIngress) -> tuple[SmtpClient, Connection, asyncio.Transport]:
    """A client that sends many commands and reads no replies; its connection and transport after reading was paused."""
    client = await server.connect()
    await client.read_reply()
    await client.command("EHLO client.test")
    await client.command("MAIL FROM:<alice@example.test>")
    (connection,) = server.ingress.connections
    transport = connection.transport
    assert isinstance(transport, asyncio.Transport)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.writer.transport.pause_reading()
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(_COMMANDS // 1000):
        client.send(b"RCPT TO:<bob@example.test>\r\n" * 1000)
    await wait_until(transport.get_write_buffer_size)
    await wait_until(lambda: not transport.is_reading())
    return client, connection, transport


async def test_client_that_reads_late_gets_every_reply() -> None:
    """An attribute named `_paused` would collide with asyncio's flow control and stop the session forever."""
    async with running_ingress() as server:
        client, connection, transport = await _client_that_does_not_read(server)
        for _ in range(50):
            await asyncio.sleep(0.002)
            assert connection.framer.pipelined_bytes < 1_000_000
            assert transport.get_write_buffer_size() < 200_000
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.writer.transport.resume_reading()
        for _ in range(_COMMANDS):
            assert await client.reader.readline() == b"250 2.1.5 Recipient ok\r\n"
        assert await client.command("QUIT") == "221 2.0.0 Bye"


async def test_client_that_never_reads_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.connection._LINGER_SECONDS", 0.1)
    async with running_ingress(command_timeout="300ms") as server:
        client, _, _ = await _client_that_does_not_read(server)
        await wait_until(lambda: server.open_connections == 0)
        client.writer.transport.abort()


async def test_pipelined_commands_do_not_block_other_sessions() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        (connection,) = server.ingress.connections
        other = await server.connect()
        await other.read_reply()
        for each in (client, other):
            await each.command("EHLO client.test")
        await client.command("MAIL FROM:<alice@example.test>")
        connection.data_received(b"RCPT TO:<bob@example.test>\r\n" * 2000)
        assert (await other.command("NOOP")).startswith("250 ")
        assert connection.framer.pipelined_bytes > 0
