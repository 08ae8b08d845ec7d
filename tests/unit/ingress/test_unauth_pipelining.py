"""Commands that a client sends ahead of a reply where RFC 2920 does not allow it."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from tests.support.docs.metrics import value
from tests.support.servers.ingress import running_ingress
from tests.support.servers.ports import wait_until

REFUSED = "554 5.5.0 SMTP protocol synchronization"


@pytest.mark.parametrize(
    "packet",
    [
        b"EHLO x\r\nMAIL FROM:<>\r\n",
        b"HELO x\r\nMAIL FROM:<>\r\n",
        b"NOOP\r\nNOOP\r\n",
        b"VRFY alice\r\nMAIL",  # an incomplete line, too
        b"RSET\r\nRSET\r\n",  # without EHLO
    ],
)
async def test_a_outsider_that_sends_ahead_is_refused_and_disconnected(packet: bytes) -> None:
    before = value("smtp_sessions_total", listener="mx", end="unauth_pipelining")
    async with running_ingress(relay_networks=[]) as server:
        client = await server.connect()
        await client.read_reply()
        with capture_logs() as lines:
            client.send(packet)
            assert await client.read_reply() == REFUSED
            assert await client.read_to_end() == b""
            await wait_until(lambda: value("smtp_sessions_total", listener="mx", end="unauth_pipelining") > before)
        assert [line["reply"] for line in lines if line["event"] == "command refused"] == [REFUSED]


@pytest.mark.parametrize("helo", ["EHLO", "HELO"])
async def test_clients_of_relay_networks_may_send_ahead(helo: str) -> None:
    async with running_ingress() as server:
        client = await server.connect()
        client.send(f"{helo} x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n".encode())
        assert b"\r\n250 2.0.0 Ok: queued" in await client.read_to_end()


async def test_an_http_request_is_still_told_that_this_is_smtp() -> None:
    async with running_ingress(relay_networks=[]) as server:
        client = await server.connect()
        await client.read_reply()
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.read_reply()).startswith("421 4.7.0 This is an SMTP server")
