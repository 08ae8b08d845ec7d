"""The clocks of a session: what moves them, and what silence costs."""

from __future__ import annotations

import pytest

from tests.support.servers.ingress import running_ingress, wait_until


async def test_the_timer_is_per_part_of_data() -> None:
    async with running_ingress(data_timeout="60s") as server:
        client = await server.connect()
        await client.start_data()
        (session,) = server.ingress._sessions
        for _ in range(3):
            before = session._deadline
            client.send(b"slow line\r\n")
            await wait_until(lambda before=before: session._deadline > before)
        session._deadline = session.loop.time()  # silence from here on
        session._timeout_cb()
        assert await client.read_reply() == "421 4.4.2 Timed out"


async def test_a_sender_of_a_byte_now_and_then_does_not_stay_for_ever() -> None:
    async with running_ingress(data_timeout="60s") as server:
        client = await server.connect()
        await client.start_data()
        (session,) = server.ingress._sessions
        session._data_began -= 601.0  # ten times the time-out ago
        client.send(b"x")
        assert await client.read_reply() == "421 4.4.2 Timed out"
        assert server.log.accepted == []


@pytest.mark.parametrize("in_data", [False, True])
async def test_silence_is_421(in_data: bool) -> None:
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


async def test_bytes_without_a_line_end_do_not_move_the_command_timer() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("NOOP")
        (session,) = server.ingress._sessions
        before = session._deadline
        for octets in (b"NO", b"OP" * 2000):
            client.send(octets)
            await client.writer.drain()
        await wait_until(lambda: session.framer._overlong)
        assert session._deadline == before
        assert await client.command("") == "500 5.5.2 Line too long"
        assert session._deadline > before
