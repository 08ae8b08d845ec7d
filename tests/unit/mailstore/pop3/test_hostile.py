"""Hostile POP3 clients: garbage, idle connections, clients that do not read, too many connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from datetime import timedelta
from pathlib import Path

import pytest

from mail.message import DeliveryId
from mailstore.maildir import Maildir
from mailstore.memory import MemoryMailboxes
from mailstore.pop3 import connection as pop3_connection
from tests.support.clients.pop3 import LOG_IN, OWNER, connect, exchange, log_in, metric, running_pop3
from tests.support.servers.ports import wait_until


async def test_garbage_ends_the_session_and_a_long_line_does_not(mailboxes: MemoryMailboxes) -> None:
    async with running_pop3(mailboxes) as role:
        garbage = await exchange(role, bytes(range(256)) * 200 + b"\r\n" * 30)
        assert garbage.startswith(b"+OK")
        assert garbage.count(b"-ERR") == 20
        long_line = await exchange(role, b"USER " + b"a" * 200_000 + b"\r\n" + LOG_IN + b"QUIT\r\n")
        assert b"-ERR line too long\r\n+OK\r\n+OK 2 messages" in long_line


async def test_single_octets_do_not_extend_the_idle_time(mailboxes: MemoryMailboxes) -> None:
    async with running_pop3(mailboxes, idle="200ms") as role:
        reader, writer = await log_in(role)
        writer.write(b"DELE 1\r\n")
        await reader.readline()

        async def send_octets() -> None:
            while True:
                writer.write(b"N")
                await asyncio.sleep(0.02)

        sending = asyncio.create_task(send_octets())
        with contextlib.suppress(ConnectionResetError):  # an octet crossed the server's FIN
            assert await asyncio.wait_for(reader.read(), 10) == b""
        sending.cancel()
        writer.close()
        await wait_until(lambda: not mailboxes.locked)
        assert len(await mailboxes.messages(OWNER)) == 2


async def test_client_that_never_reads_holds_one_slice_and_is_disconnected(tmp_path: Path) -> None:
    maildir = Maildir(tmp_path, "mx.example.test")
    await maildir.append(OWNER, DeliveryId("A-0"), b"x" * 70 + b"\r\n" + b"y" * 30_000_000 + b"\r\n")
    before = metric("eilpost_pop3_sessions_total", end="slow")
    async with running_pop3(maildir, write_timeout=timedelta(seconds=0.3)) as role:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", role.port))
        await loop.sock_sendall(client, LOG_IN + b"RETR 1\r\n" * 10)
        buffered = 0
        async with asyncio.timeout(10):
            while metric("eilpost_pop3_sessions_total", end="slow") == before:
                for connection in role._connections.values():
                    buffered = max(buffered, connection._writer.transport.get_write_buffer_size())
                await asyncio.sleep(0.005)
        assert 0 < buffered <= 2 * pop3_connection.SLICE_BYTES + 100
        async with maildir.session_lock(OWNER):
            client.close()


async def test_too_many_connections_are_refused(mailboxes: MemoryMailboxes) -> None:
    async with running_pop3(mailboxes, max_connections=2) as role:
        connections = [await connect(role) for _ in range(2)]
        for reader, _writer in connections:
            await reader.readline()
        assert (await exchange(role, b"")).startswith(b"-ERR [SYS/TEMP] too many connections")
        connections[0][1].write(b"QUIT\r\n")
        await connections[0][0].read()
        await wait_until(lambda: metric("eilpost_pop3_connections") < 2)
        assert (await exchange(role, b"QUIT\r\n")).startswith(b"+OK eilpost")
        for _reader, writer in connections:
            writer.close()


async def test_connection_during_a_drain_is_refused_with_the_reason(mailboxes: MemoryMailboxes) -> None:
    async with running_pop3(mailboxes) as role:
        role.stopping = True  # the drain has begun, and the connection was already in the listener's backlog
        assert await exchange(role, b"") == b"-ERR [SYS/TEMP] shutting down, try again later\r\n"


async def test_connections_without_login_are_limited_per_client(
    mailboxes: MemoryMailboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pop3_connection, "MAX_UNAUTHENTICATED_PER_CLIENT", 3)
    async with running_pop3(mailboxes) as role:
        reader, writer = await log_in(role)  # authenticated connections do not count
        monkeypatch.setattr(pop3_connection, "is_loopback", lambda _ip: False)
        connections = [await connect(role) for _ in range(3)]
        for unauthenticated, _writer in connections:
            assert (await unauthenticated.readline()).startswith(b"+OK")
        assert (await exchange(role, b"")).startswith(b"-ERR [SYS/TEMP] too many connections")
        writer.write(b"NOOP\r\n")
        assert await reader.readline() == b"+OK\r\n"
        for _reader, other in [*connections, (reader, writer)]:
            other.close()


async def test_a_outsider_without_login_makes_room_for_a_new_connection(
    mailboxes: MemoryMailboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_pop3(mailboxes, max_connections=3) as role:
        reader, writer = await log_in(role)
        monkeypatch.setattr(pop3_connection, "is_loopback", lambda _ip: False)
        outsiders = [await connect(role) for _ in range(2)]
        for outsider, _writer in outsiders:
            assert (await outsider.readline()).startswith(b"+OK")
        monkeypatch.undo()
        before = metric("eilpost_pop3_sessions_total", end="rejected")
        other = await log_in(role, b"USER bob@example.test\r\nPASS bobs\r\n")
        assert await asyncio.wait_for(outsiders[0][0].read(), 10) == b""  # the oldest
        assert metric("eilpost_pop3_sessions_total", end="rejected") == before + 1
        for still_served, its_writer in (other, outsiders[1], (reader, writer)):
            its_writer.write(b"CAPA\r\n")
            assert await still_served.readline() == b"+OK capabilities follow\r\n"
        for _reader, each in [*outsiders, (reader, writer), other]:
            each.close()


async def test_a_login_frees_the_place_among_connections_without_login(
    mailboxes: MemoryMailboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_pop3(mailboxes) as role:
        await exchange(role, b"QUIT\r\n")
        monkeypatch.setattr(pop3_connection, "is_loopback", lambda _ip: False)
        outsider, writer = await connect(role)
        await outsider.readline()
        assert len(role.services.unauthenticated) == 1
        writer.close()
        await wait_until(lambda: len(role.services.unauthenticated) == 0)
