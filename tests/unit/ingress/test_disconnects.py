"""Clients that disconnect before the final dot or during the append, or send everything in one packet."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from structlog.testing import capture_logs

from tests.support.docs.metrics import value
from tests.support.servers.ingress import running_ingress
from tests.support.servers.ports import wait_until


@pytest.mark.parametrize("disconnect", ["half-close", "close", "reset"])
async def test_disconnect_during_the_append_does_not_cancel_it(disconnect: str) -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.start_data()
        server.log.gate.clear()
        client.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
        await asyncio.wait_for(server.log.waiting.wait(), 10)
        if disconnect == "half-close":
            client.writer.write_eof()
        elif disconnect == "close":
            client.writer.close()
        else:
            client.writer.transport.abort()
        await asyncio.sleep(0.05)
        server.log.gate.set()
        await wait_until(lambda: server.log.accepted)
        if disconnect == "half-close":
            assert (await client.read_to_end()).startswith(b"250 2.0.0 Ok: queued as ")
        await wait_until(lambda: server.open_connections == 0)
        assert server.body() == b"Subject: x\r\n\r\nbody\r\n"
        assert server.in_flight_bytes == 0


@pytest.mark.parametrize(
    ("commands", "reply", "rest"),
    [
        (b"", b"220 ", b""),
        (b"", b"220 ", b"EH"),
        (b"EHLO x\r\nMAIL FROM:<>\r\n", b"250 2.1.0 ", b""),
        (b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n", b"354 ", b""),
        (
            b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n",
            b"354 ",
            b"Subject: x\r\n\r\nhalf\r\n.",
        ),
    ],
)
@pytest.mark.parametrize("abort", [False, True])
async def test_disconnect_before_the_final_dot_appends_nothing(
    commands: bytes, reply: bytes, rest: bytes, abort: bool
) -> None:
    async with running_ingress(max_connections=1) as server:
        client = await server.connect()
        client.send(commands + rest)
        await client.reader.readuntil(reply)
        (connection,) = server.ingress.connections
        await wait_until(lambda: connection.framer.data_held_bytes == len(rest))
        if abort:
            client.writer.transport.abort()
        else:
            client.writer.close()
        await wait_until(lambda: server.open_connections == 0)
        assert server.log.accepted == []
        assert server.in_flight_bytes == 0
        assert (await (await server.connect()).read_reply()).startswith("220")  # the limiter does not count it


def test_session_runs_on_uvloop() -> None:
    uvloop.run(test_whole_session_in_one_packet_with_half_close())
    for abort in (False, True):
        uvloop.run(test_disconnect_before_the_final_dot_appends_nothing(b"EHLO x\r\n", b"250 ", b"MAIL", abort))


async def test_whole_session_in_one_packet_with_half_close() -> None:
    """As `printf ... | nc -N` does."""
    async with running_ingress() as server:
        client = await server.connect()
        client.send(
            b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: 1\r\n\r\n.\r\n"
            b"MAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: 2\r\n\r\n.\r\nQUIT\r\n"
        )
        client.writer.write_eof()
        assert (await client.read_to_end()).endswith(b"221 2.0.0 Bye\r\n")
        assert [server.body(number) for number in range(2)] == [b"Subject: 1\r\n\r\n", b"Subject: 2\r\n\r\n"]


async def test_http_request_has_its_own_session_end() -> None:
    def ended(end: str) -> float:
        return value("smtp_sessions_total", listener="mx", end=end)

    async with running_ingress() as server:
        before = ended("not_smtp"), ended("too_many_errors")
        with capture_logs() as lines:
            client = await server.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: mx.example.test\r\n\r\n")
            assert (await client.read_to_end()).endswith(b"421 4.7.0 This is an SMTP server\r\n")
            await wait_until(lambda: server.open_connections == 0)
        assert (ended("not_smtp"), ended("too_many_errors")) == (before[0] + 1, before[1])
        assert [line["end"] for line in lines if line["event"] == "session ended"] == ["not_smtp"]
