"""Time-outs of a session."""

from __future__ import annotations

import pytest

from tests.support.clock import Clock
from tests.support.servers.ingress import running_ingress
from tests.support.servers.ports import wait_until


async def test_data_time_out_restarts_with_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with running_ingress(data_timeout="60s") as server:
        client = await server.connect()
        await client.start_data()
        for number in range(1, 4):
            clock.advance(40)
            client.send(b"slow line\r\n")
            await wait_until(lambda number=number: server.in_flight_bytes == number * 11)
        clock.advance(61)
        assert await client.read_reply() == "421 4.4.2 Timed out"


async def test_slow_data_times_out_eventually(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with running_ingress(data_timeout="60s") as server:
        client = await server.connect()
        await client.start_data()
        for number in range(1, 8):
            clock.advance(40)
            client.send(b"x")
            await wait_until(lambda number=number: server.in_flight_bytes == number)
        clock.advance(21)  # five times the time-out, but less than one since the last part
        assert await client.read_reply() == "421 4.4.2 Timed out"
        assert server.log.accepted == []


@pytest.mark.parametrize("in_data", [False, True])
async def test_idle_session_gets_421(in_data: bool) -> None:
    async with running_ingress(data_timeout="100ms", command_timeout="30s" if in_data else "100ms") as server:
        client = await server.connect()
        if in_data:
            await client.start_data()
            client.send(b"half a line")
        else:
            await client.read_reply()
        assert await client.read_reply() == "421 4.4.2 Timed out"
        assert await client.read_to_end() == b""
        assert server.log.accepted == []


async def test_incomplete_lines_do_not_restart_the_command_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with running_ingress(command_timeout="5m") as server:
        client = await server.connect()
        await client.read_reply()
        for _ in range(2):
            clock.advance(200)
            assert await client.command("NOOP" * 1000) == "500 5.5.2 Line too long"
        (connection,) = server.ingress.connections
        clock.advance(200)
        client.send(b"NO")
        await wait_until(lambda: connection.framer.pipelined_bytes == 2)
        client.send(b"OP" * 1000)
        await wait_until(lambda: connection.framer.pipelined_bytes == 0)  # discarded: the line is too long
        clock.advance(101)
        assert await client.read_reply() == "421 4.4.2 Timed out"
