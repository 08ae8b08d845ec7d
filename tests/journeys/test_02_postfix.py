"""Journey 2: through a real Postfix and back: eilpost -> Postfix -> eilpost -> mailbox."""

from __future__ import annotations

import asyncio

import pytest

from mail.outcome import Delivered
from mail.record import DeliveryAttempted
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.ports import free_port, wait_until
from tests.support.servers.postfix import Postfix

pytestmark = pytest.mark.postfix

# With all header fields, because Postfix would add missing ones.
HEAD = (
    b"From: bob@example.test\r\nTo: someone@away.test\r\nSubject: there and back\r\n"
    b"Date: Mon, 23 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@example.test>\r\n\r\n"
)
BODY = b"Through another's hands.\r\n.leading dot\r\n" + b"line of the message\r\n" * 500


async def test_message_to_postfix_and_back_is_delivered() -> None:
    postfix_port = free_port()
    async with InMemoryMailServer(
        {"delivery": {"relay": f"smtp://127.0.0.1:{postfix_port}"}},
        aliases={"home@example.test": ["alice@example.test"]},
    ) as mail_server:
        # Postfix accepts mail for away.test and forwards it to home@example.test on eilpost.
        postfix = Postfix(
            {
                "virtual_alias_domains": "away.test",
                "virtual_alias_maps": "inline:{{someone@away.test=home@example.test}}",
                "relayhost": f"[127.0.0.1]:{mail_server.smtp_port}",
            },
            port=postfix_port,
        )
        await asyncio.to_thread(postfix.__enter__)
        try:
            content = HEAD + BODY
            queue_id = await mail_server.send(content, to=["someone@away.test"])
            await mail_server.wait_closed(queue_id)
            (attempt,) = await mail_server.details(queue_id, DeliveryAttempted)
            (outcome,) = attempt.outcomes
            assert isinstance(outcome, Delivered)
            assert outcome.remote is not None
            assert str(postfix_port) in outcome.remote
            assert "queued as" in outcome.reply.text  # Postfix's reply text

            async def arrived() -> bool:
                return len(await mail_server.mailbox("alice")) == 1

            await wait_until(arrived, what=f"the way back; Postfix says: {postfix.log()[-1500:]}")
        finally:
            await asyncio.to_thread(postfix.stop)
        (stored,) = await mail_server.mailbox("alice")
        assert stored.endswith(content)
        head = stored[: -len(content)]
        # Two Received headers of eilpost and one of Postfix.
        assert head.count(b"(eilpost)") == 2
        assert head.count(b"(Postfix)") == 1


async def test_recipient_refused_by_postfix_bounces() -> None:
    postfix = Postfix(
        # Postfix does not relay for eilpost.
        {"mynetworks": "192.0.2.1/32", "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination"}
    )
    await asyncio.to_thread(postfix.__enter__)
    try:
        async with InMemoryMailServer({"delivery": {"relay": f"smtp://127.0.0.1:{postfix.port}"}}) as mail_server:
            queue_id = await mail_server.send(b"Subject: refused\r\n\r\nhello\r\n", to=["someone@elsewhere.test"])
            await mail_server.wait_bounce(queue_id)
            (report,) = await mail_server.mailbox("bob")
    finally:
        await asyncio.to_thread(postfix.stop)
    assert b"Status: 5.7.1" in report
    assert b"Relay access denied" in report
