"""A session and what is around it: DNS asked for strangers alone, a spool and a log out of order, a mail loop."""

from __future__ import annotations

from mail.log import Down
from mail.spool import SpoolUnavailable
from tests.support.ingressing import running


async def test_dns_is_asked_for_strangers_domains_only() -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        await client.say("HELO x")
        for sender in ("", "alice@example.test", "x@catch.test", "x@relayed.test", "x@[192.0.2.1]", "x@good.test"):
            assert (await client.say(f"MAIL FROM:<{sender}>")).startswith("250"), sender
            await client.say("RSET")
        assert set(world.resolver.asked) == {"good.test"}


async def test_the_spool_out_of_order_is_our_fault() -> None:
    async with running() as world:
        world.spool.error = SpoolUnavailable("disk full")
        client = await world.connect()
        await client.begin()
        client.send(b"x" * 300_000 + b"\r\n")
        assert (await client.say(".")).startswith("451 4.3.0 Local error")
        assert world.log.accepted == []


async def test_the_log_going_down_is_421_at_mail() -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        await client.say("HELO x")
        world.log.now = Down("test")
        assert (await client.say("MAIL FROM:<>")).startswith("421 4.3.2")
        assert await client.rest() == b""


async def test_a_loop_is_554() -> None:
    async with running(max_hops=3) as world:
        client = await world.connect()
        for hops, code in ((3, "250 2.0.0"), (4, "554 5.4.6")):
            if hops == 3:
                await client.begin()
            else:
                for command in ("MAIL FROM:<>", "RCPT TO:<bob@example.test>", "DATA"):
                    await client.say(command)
            client.send(b"ReCeived: from x\r\n\tby y\r\n" * hops + b"\r\nReceived: in the body\r\n.\r\n")
            assert (await client.reply()).startswith(code)
