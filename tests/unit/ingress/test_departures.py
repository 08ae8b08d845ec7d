"""Clients that go: before the dot, during the append, or by saying everything at once."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.ingressing import running, until


@pytest.mark.parametrize("goodbye", ["half-close", "close", "reset"])
async def test_a_client_that_goes_during_the_append_does_not_undo_it(goodbye: str) -> None:
    async with running() as world:
        client = await world.connect()
        await client.begin()
        world.log.gate.clear()
        client.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
        await asyncio.wait_for(world.log.waiting.wait(), 10)
        if goodbye == "half-close":
            client.writer.write_eof()
        elif goodbye == "close":
            client.writer.close()
        else:
            client.writer.transport.abort()
        await asyncio.sleep(0.05)
        world.log.gate.set()
        await until(lambda: world.log.accepted)
        if goodbye == "half-close":
            assert (await client.rest()).startswith(b"250 2.0.0 Ok: queued as ")
        await until(lambda: not world.ingress._sessions)
        assert world.body() == b"Subject: x\r\n\r\nbody\r\n"
        assert world.ingress._meter.used_bytes == 0


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"EH",
        b"EHLO x\r\nMAIL FROM:<>\r\n",
        b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n",
        b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: x\r\n\r\nhalf\r\n.",
    ],
)
@pytest.mark.parametrize("abort", [False, True])
async def test_a_client_that_goes_before_the_dot_leaves_nothing(said: bytes, abort: bool) -> None:
    async with running() as world:
        client = await world.connect()
        client.send(said)
        await asyncio.sleep(0.02)
        if abort:
            client.writer.transport.abort()
        else:
            client.writer.close()
        await until(lambda: not world.ingress._sessions)
        assert world.log.accepted == []
        assert world.ingress._meter.used_bytes == 0
        assert world.ingress._door.crowd.total == 0


async def test_all_at_once_and_a_half_close() -> None:
    """`printf ... | nc -N`: every command in one packet, then no more."""
    async with running() as world:
        client = await world.connect()
        client.send(
            b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: 1\r\n\r\n.\r\n"
            b"MAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: 2\r\n\r\n.\r\nQUIT\r\n"
        )
        client.writer.write_eof()
        assert (await client.rest()).endswith(b"221 2.0.0 Bye\r\n")
        assert [world.body(number) for number in range(2)] == [b"Subject: 1\r\n\r\n", b"Subject: 2\r\n\r\n"]
