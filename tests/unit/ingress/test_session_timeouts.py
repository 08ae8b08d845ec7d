"""Time-outs of a session."""

from __future__ import annotations

import pytest

from tests.support.servers.ingress import running_ingress, wait_until


async def test_data_time_out_restarts_with_each_part() -> None:
    async with running_ingress(data_timeout="60s") as server:
        client = await server.connect()
        await client.start_data()
        (session,) = server.ingress._connections
        for _ in range(3):
            before = session._deadline
            client.send(b"slow line\r\n")
            await wait_until(lambda before=before: session._deadline > before)
        session._deadline = session.loop.time()  # the client sends nothing more
        session._timeout_cb()
        assert await client.read_reply() == "421 4.4.2 Timed out"


async def test_slow_data_times_out_eventually() -> None:
    async with running_ingress(data_timeout="60s") as server:
        client = await server.connect()
        await client.start_data()
        (session,) = server.ingress._connections
        session._data_started_at -= 601.0  # ten times the time-out
        client.send(b"x")
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


async def test_incomplete_lines_do_not_restart_the_command_time_out() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("NOOP")
        (session,) = server.ingress._connections
        before = session._deadline
        for octets in (b"NO", b"OP" * 2000):
            client.send(octets)
            await client.writer.drain()
        await wait_until(lambda: session.framer._overlong)
        assert session._deadline == before
        assert await client.command("") == "500 5.5.2 Line too long"
        assert session._deadline > before
