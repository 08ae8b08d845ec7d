"""08: a report that cannot be delivered is the end of the matter: no bounce of a bounce (RFC 5321 section 6.1)."""

from __future__ import annotations

from mail.record import Bounced, Closed
from tests.support.remote import Remote
from tests.support.world import World


async def test_a_bounce_of_a_bounce_is_discarded() -> None:
    async with (
        Remote({"RCPT": ["550 5.1.1 no such user"]}) as remote,
        World({"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}}) as world,
    ):
        # Somebody elsewhere sends to somebody elsewhere: neither can be reached.
        queue_id = await world.send(
            b"Subject: x\r\n\r\nhello\r\n", to=["gone@elsewhere.test"], sender="also-gone@third.test"
        )
        report = await world.bounce_of(queue_id)
        (about_report,) = await world.happened(report, Bounced)
        assert about_report.dsn is None
        assert isinstance((await world.story(report))[-1], Closed)
        assert await world.queue() == []
        asked = [command for session in remote.sessions for command in session.commands]
        assert sum(command.startswith("MAIL FROM:<>") for command in asked) == 1  # the report was tried, once


async def test_the_null_sender_may_write_to_us() -> None:
    async with World() as world:
        await world.closed(await world.send(b"Subject: report\r\n\r\nhello\r\n", to=["alice@example.test"], sender=""))
        (kept,) = await world.mailbox("alice")
        assert kept.startswith(b"Return-Path: <>\r\n")
