"""Journey 8: a DSN that cannot be delivered is discarded: no bounce of a bounce (RFC 5321 section 6.1)."""

from __future__ import annotations

from mail.record import Closed, Discarded
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.scripted_remote import ScriptedRemote


async def test_undeliverable_dsn_is_discarded() -> None:
    async with (
        ScriptedRemote({"RCPT": ["550 5.1.1 no such user"]}) as remote,
        InMemoryMailServer({"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}}) as mail_server,
    ):
        # Sender and recipient are both remote and unreachable.
        queue_id = await mail_server.send(
            b"Subject: x\r\n\r\nhello\r\n", to=["gone@elsewhere.test"], sender="also-gone@third.test"
        )
        report = await mail_server.wait_bounce(queue_id)
        (discarded,) = await mail_server.details(report, Discarded)
        assert [str(recipient) for recipient in discarded.recipients] == ["also-gone@third.test"]
        assert isinstance((await mail_server.history(report))[-1], Closed)
        assert await mail_server.queue() == []
        asked = [command for session in remote.sessions for command in session.commands]
        assert sum(command.startswith("MAIL FROM:<>") for command in asked) == 1  # the DSN was attempted once


async def test_null_sender_is_accepted() -> None:
    async with InMemoryMailServer() as mail_server:
        await mail_server.wait_closed(
            await mail_server.send(b"Subject: report\r\n\r\nhello\r\n", to=["alice@example.test"], sender="")
        )
        (stored,) = await mail_server.mailbox("alice")
        assert stored.startswith(b"Return-Path: <>\r\n")
