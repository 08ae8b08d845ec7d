"""Limits per session and per process: lines, message data, recipients, connections."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from mail.address import Address
from mail.directory import Domain, Snapshot, Tenant, User
from mail.log import Down, Full, Usable
from tests.support.servers.ingress import running_ingress
from tests.support.servers.ports import wait_until
from tests.support.servers.static_directory import StaticDirectory


async def test_overlong_lines_are_refused_and_the_session_continues() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        for line in ("NOOP " + "x" * 506, "NOOP " + "x" * 5000, "x" * 500_000):
            assert await client.command(line) == "500 5.5.2 Line too long", len(line)
        assert await client.command("NOOP " + "x" * 505) == "250 2.0.0 Ok"
        assert (await client.command("EHLO x")).endswith("SMTPUTF8")
        local = "a" * 64
        long_mail = (
            f"MAIL FROM:<@{'r' * 60}.{'r' * 60}.{'r' * 60}.test:{local}@catch.test> SIZE=1000 BODY=8BITMIME SMTPUTF8"
        )
        assert len(long_mail) < 565
        assert (await client.command(long_mail)).startswith("250")


async def test_long_lines_in_message_data_are_accepted() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.start_data()
        content = b"Subject: x\r\n\r\n" + b"y" * 300_000 + b"\r\n"
        client.send(content + b".\r\n")
        assert (await client.read_reply()).startswith("250")
        assert server.body() == content
        assert len(server.spool.contents) == 1  # more than spool.max_inline_size


async def test_too_large_message_gets_552_and_the_session_continues() -> None:
    async with running_ingress(max_message_size="100KiB") as server:
        client = await server.connect()
        await client.start_data()
        for _ in range(40):
            client.send(b"x" * 9_998 + b"\r\n")
        assert await client.command(".") == "552 5.3.4 Message is too large"
        assert (await client.command("MAIL FROM:<>")).startswith("250")
        assert server.log.accepted == []


@pytest.mark.parametrize(("size_bytes", "code"), [(307_200, "250"), (307_201, "552")])
async def test_size_limit_excludes_transparent_dots(size_bytes: int, code: str) -> None:
    async with running_ingress(max_message_size="300KiB") as server:
        client = await server.connect()
        await client.start_data()
        content = b"Subject: x\r\n\r\n" + b".\r\n" * 99_900  # 399.6 kB on the wire
        content += b"y" * (size_bytes - len(content) - 2) + b"\r\n"
        assert len(content) == size_bytes
        with capture_logs() as lines:
            client.send(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")  # transparent dots do not count
            assert (await client.read_reply()).startswith(code)
        refused = [line["content_bytes"] for line in lines if line["event"] == "command refused"]
        assert refused == [size_bytes] * (code == "552")
        assert [server.body(number) for number in range(len(server.log.accepted))] == [content] * (code == "250")


async def test_message_data_beyond_the_memory_budget_gets_452() -> None:
    async with running_ingress(max_in_flight_bytes="64KiB") as server:
        first, second = await server.connect(), await server.connect()
        await first.start_data()
        await second.start_data()
        first.send(b"x" * 40_000 + b"\r\n")
        await wait_until(lambda: server.in_flight_bytes >= 40_000)
        second.send(b"x" * 40_000 + b"\r\n")
        assert await second.command(".") == "452 4.3.1 Insufficient system storage, try again later"
        assert (await first.command(".")).startswith("250")
        assert server.in_flight_bytes == 0


async def test_connection_limits() -> None:
    async with running_ingress(max_connections=2) as server:
        connected = [await server.connect() for _ in range(2)]
        assert [(await connected_client.read_reply())[:3] for connected_client in connected] == ["220", "220"]
        assert (await (await server.connect()).read_reply()).startswith("421 4.7.0")
        await connected[0].command("QUIT")
        await wait_until(lambda: server.open_connections == 1)
        assert (await (await server.connect()).read_reply()).startswith("220")
    async with running_ingress(max_connections_per_client=1, relay_networks=[]) as server:
        assert (await (await server.connect()).read_reply()).startswith("220")
        assert (await (await server.connect()).read_reply()).startswith("421 4.7.0")


async def test_too_many_recipients_get_452_and_the_others_are_accepted() -> None:
    async with running_ingress(max_recipients=100) as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("EHLO x")
        await client.command("MAIL FROM:<>")
        with capture_logs() as lines:
            answers = [(await client.command(f"RCPT TO:<u{number}@catch.test>"))[:9] for number in range(101)]
        assert answers == ["250 2.1.5"] * 100 + ["452 4.5.3"]
        refused = [line["recipient"] for line in lines if line["event"] == "command refused"]
        assert refused == ["u100@catch.test"]
        assert (await client.command("RCPT TO:<u1@catch.test>")).startswith("250")  # already among them
        await client.command("DATA")
        assert (await client.command(".")).startswith("250")
        assert len(server.log.accepted[0].message.envelope.recipients) == 100


async def test_a_recipient_refused_because_of_its_tenant_has_a_log_line() -> None:
    snapshot = Snapshot(
        tenants={name: Tenant(name, dedicated=True) for name in ("one", "two")},
        domains={f"{name}.test": Domain(f"{name}.test", name) for name in ("one", "two")},
        aliases={f"@{name}.test": (Address("all", f"{name}.test"),) for name in ("one", "two")},
        users={f"all@{name}.test": User(Address("all", f"{name}.test")) for name in ("one", "two")},
    )
    async with running_ingress(directory=StaticDirectory(snapshot)) as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("EHLO x")
        await client.command("MAIL FROM:<>")
        replies = []
        with capture_logs() as lines:
            for recipient, condition in (
                ("a@one.test", Down("its log is down")),
                ("b@one.test", Full("its log is full")),
                ("c@one.test", Usable()),
                ("d@two.test", Usable()),
            ):
                server.log.current_condition = condition
                replies.append((await client.command(f"RCPT TO:<{recipient}>"), recipient))
        assert [reply[:9] for reply, _ in replies] == ["451 4.3.2", "452 4.3.1", "250 2.1.5", "452 4.5.3"]
        refused = [
            (line["reply"], line["recipient"], line["sender"]) for line in lines if line["event"] == "command refused"
        ]
        assert refused == [(*reply, "<>") for reply in replies if not reply[0].startswith("250")]
