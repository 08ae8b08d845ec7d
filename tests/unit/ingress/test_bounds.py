"""The bounds of a session and of all of them: lines, content, recipients, connections."""

from __future__ import annotations

import pytest

from tests.support.ingressing import running, until


async def test_oversize_lines_are_refused_and_the_session_goes_on() -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        for line in ("NOOP " + "x" * 506, "NOOP " + "x" * 5000, "x" * 500_000):
            assert await client.say(line) == "500 5.5.2 Line too long", len(line)
        assert await client.say("NOOP " + "x" * 505) == "250 2.0.0 Ok"
        assert (await client.say("EHLO x")).endswith("SMTPUTF8")
        local = "a" * 64
        long_mail = (
            f"MAIL FROM:<@{'r' * 60}.{'r' * 60}.{'r' * 60}.test:{local}@catch.test> SIZE=1000 BODY=8BITMIME SMTPUTF8"
        )
        assert len(long_mail) < 565
        assert (await client.say(long_mail)).startswith("250")


async def test_long_lines_in_content_are_taken() -> None:
    async with running() as world:
        client = await world.connect()
        await client.begin()
        content = b"Subject: x\r\n\r\n" + b"y" * 300_000 + b"\r\n"
        client.send(content + b".\r\n")
        assert (await client.reply()).startswith("250")
        assert world.body() == content
        assert len(world.spool.kept) == 1  # more than spool.inline_max


async def test_too_large_is_drained_and_the_session_goes_on() -> None:
    async with running(max_size="100KiB") as world:
        client = await world.connect()
        await client.begin()
        for _ in range(40):
            client.send(b"x" * 9_998 + b"\r\n")
        assert await client.say(".") == "552 5.3.4 Message is too large"
        assert (await client.say("MAIL FROM:<>")).startswith("250")
        assert world.log.accepted == []


@pytest.mark.parametrize(("octets", "code"), [(307_200, "250"), (307_201, "552")])
async def test_the_size_limit_counts_what_is_stored(octets: int, code: str) -> None:
    async with running(max_size="300KiB") as world:
        client = await world.connect()
        await client.begin()
        content = b"Subject: x\r\n\r\n" + b".\r\n" * 99_900  # 399.6 kB on the wire
        content += b"y" * (octets - len(content) - 2) + b"\r\n"
        assert len(content) == octets
        client.send(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")  # dots on the wire do not count
        assert (await client.reply()).startswith(code)
        assert [world.body(number) for number in range(len(world.log.accepted))] == [content] * (code == "250")


async def test_content_beyond_the_cap_of_all_sessions_is_452() -> None:
    async with running(bytes_in_flight="64KiB") as world:
        first, second = await world.connect(), await world.connect()
        await first.begin()
        await second.begin()
        first.send(b"x" * 40_000 + b"\r\n")
        await until(lambda: world.ingress._meter.used_bytes >= 40_000)
        second.send(b"x" * 40_000 + b"\r\n")
        assert await second.say(".") == "452 4.3.1 Insufficient system storage, try again later"
        assert (await first.say(".")).startswith("250")
        assert world.ingress._meter.used_bytes == 0


async def test_connection_limits() -> None:
    async with running(max_connections=2) as world:
        kept = [await world.connect() for _ in range(2)]
        assert [(await one.reply())[:3] for one in kept] == ["220", "220"]
        assert (await (await world.connect()).reply()).startswith("421 4.7.0")
        await kept[0].say("QUIT")
        await until(lambda: world.ingress._door.crowd.total == 1)
        assert (await (await world.connect()).reply()).startswith("220")
    async with running(max_connections_per_client=1, relay_networks=[]) as world:
        assert (await (await world.connect()).reply()).startswith("220")
        assert (await (await world.connect()).reply()).startswith("421 4.7.0")


async def test_too_many_recipients_is_452_and_the_rest_is_taken() -> None:
    async with running(max_recipients=100) as world:
        client = await world.connect()
        await client.reply()
        await client.say("EHLO x")
        await client.say("MAIL FROM:<>")
        answers = [(await client.say(f"RCPT TO:<u{number}@catch.test>"))[:9] for number in range(101)]
        assert answers == ["250 2.1.5"] * 100 + ["452 4.5.3"]
        assert (await client.say("RCPT TO:<u1@catch.test>")).startswith("250")  # already among them
        await client.say("DATA")
        assert (await client.say(".")).startswith("250")
        assert len(world.log.accepted[0].message.envelope.recipients) == 100
