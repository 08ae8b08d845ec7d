"""A session and its dependencies: DNS, the spool, the log; and mail loops."""

from __future__ import annotations

from mail.log import Down
from mail.spool import SpoolUnavailable
from tests.support.servers.ingress import running_ingress


async def test_dns_is_queried_for_remote_sender_domains_only() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("HELO x")
        for sender in ("", "alice@example.test", "x@catch.test", "x@relayed.test", "x@[192.0.2.1]", "x@good.test"):
            assert (await client.command(f"MAIL FROM:<{sender}>")).startswith("250"), sender
            await client.command("RSET")
        assert set(server.resolver.queries) == {"good.test"}


async def test_spool_failure_gets_451() -> None:
    async with running_ingress() as server:
        server.spool.error = SpoolUnavailable("disk full")
        client = await server.connect()
        await client.start_data()
        client.send(b"x" * 300_000 + b"\r\n")
        assert (await client.command(".")).startswith("451 4.3.0 Local error")
        assert server.log.accepted == []


async def test_log_down_gets_421_at_mail() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("HELO x")
        server.log.current_condition = Down("test")
        assert (await client.command("MAIL FROM:<>")).startswith("421 4.3.2")
        assert await client.read_to_end() == b""


async def test_mail_loop_gets_554() -> None:
    async with running_ingress(max_hops=3) as server:
        client = await server.connect()
        for hops, code in ((3, "250 2.0.0"), (4, "554 5.4.6")):
            if hops == 3:
                await client.start_data()
            else:
                for command in ("MAIL FROM:<>", "RCPT TO:<bob@example.test>", "DATA"):
                    await client.command(command)
            client.send(b"ReCeived: from x\r\n\tby y\r\n" * hops + b"\r\nReceived: in the body\r\n.\r\n")
            assert (await client.read_reply()).startswith(code)
