"""Clients that send and do not read: their replies wait, we hold little, and the others have their turn."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ingress.session import SmtpSession
from tests.support.ingressing import Client, Running, running, until

_MANY = 30_000


async def _deaf(world: Running) -> tuple[Client, SmtpSession]:
    """A client in a transaction that sends more than we hold and does not read, and its session, stopped by that."""
    client = await world.connect()
    await client.reply()
    await client.say("EHLO client.test")
    await client.say("MAIL FROM:<alice@example.test>")
    (session,) = world.ingress._sessions
    assert session._pipe is not None
    session._pipe.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.writer.transport.pause_reading()
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(_MANY // 1000):
        client.send(b"RCPT TO:<bob@example.test>\r\n" * 1000)
    await until(lambda: session._pipe is not None and session._pipe.get_write_buffer_size())
    await until(lambda: session._reading_is_paused)
    return client, session


async def test_a_client_that_reads_late_gets_every_reply() -> None:
    """Asyncio's own `_paused` speaks of writing: a name of ours like it would stop the session for ever."""
    async with running() as world:
        client, session = await _deaf(world)
        for _ in range(50):
            await asyncio.sleep(0.002)
            assert session.intake.surplus < 1_000_000
            assert session._pipe is not None
            assert session._pipe.get_write_buffer_size() < 200_000
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        session._pipe.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.writer.transport.resume_reading()
        for _ in range(_MANY):
            assert await client.reader.readline() == b"250 2.1.5 Recipient ok\r\n"
        assert await client.say("QUIT") == "221 2.0.0 Bye"


async def test_a_client_that_never_reads_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.session._LINGER_SECONDS", 0.1)
    async with running(command_timeout="300ms") as world:
        client, _session = await _deaf(world)
        await until(lambda: not world.ingress._sessions)
        client.writer.transport.abort()


async def test_many_pipelined_commands_leave_others_their_turn() -> None:
    async with running() as world:
        client, other = await world.connect(), await world.connect()
        for each in (client, other):
            await each.reply()
            await each.say("EHLO client.test")
        await client.say("MAIL FROM:<alice@example.test>")
        (session,) = (one for one in world.ingress._sessions if one._talk._mail is not None)
        session.data_received(b"RCPT TO:<bob@example.test>\r\n" * 2000)
        assert (await other.say("NOOP")).startswith("250 ")
        assert session.intake.surplus > 0
