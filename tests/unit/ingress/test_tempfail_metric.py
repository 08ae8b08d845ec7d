"""What counts as tempfail: a message refused because of this server, at any command; not a client error."""

from __future__ import annotations

import pytest

from mail.log import Condition, Down, Full
from tests.support.docs.metrics import value
from tests.support.servers.ingress import running_ingress


def _tempfailed() -> float:
    return value("messages_received_total", result="tempfail")


@pytest.mark.parametrize(("condition", "code"), [(Full("test"), "452 4.3.1"), (Down("test"), "421 4.3.2")])
async def test_mail_refused_because_of_the_log_counts_as_tempfail(condition: Condition, code: str) -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("EHLO client.test")
        before, server.log.current_condition = _tempfailed(), condition
        assert (await client.command("MAIL FROM:<>")).startswith(code)
        assert _tempfailed() == before + 1


async def test_message_to_a_tenant_with_full_log_counts_once() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("EHLO client.test")
        await client.command("MAIL FROM:<>")
        before, server.log.current_condition = _tempfailed(), Full("test")
        for name in ("alice", "bob"):
            assert (await client.command(f"RCPT TO:<{name}@example.test>")).startswith("452 4.3.1")
        assert _tempfailed() == before + 1


async def test_failed_sender_domain_lookup_does_not_count() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("EHLO client.test")
        before = _tempfailed()
        assert (await client.command("MAIL FROM:<somebody@unknown.test>")).startswith("450 4.1.8")
        assert _tempfailed() == before
