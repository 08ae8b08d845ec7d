"""Journey 1: a message between two local users, by raw TCP and by smtplib; the recipient fetches it by POP3."""

from __future__ import annotations

import asyncio
import re

from mail.outcome import Delivered
from mail.record import Closed, DeliveryAttempted, MessageAccepted, Routed
from mail.route import ToMailbox
from tests.support.servers.in_memory import InMemoryMailServer, queue_id_in

CONTENT = (
    b"From: Bob <bob@example.test>\r\nTo: Alice <alice@example.test>\r\nSubject: lunch?\r\n\r\n"
    b"Same place?\r\n.\r\n..two dots\r\n\ttab, trailing blanks   \r\n\xc3\xa4\xff eight bits\r\n\r\n\r\nBob\r\n"
)


async def test_message_sent_over_raw_tcp_is_fetched_byte_for_byte() -> None:
    async with InMemoryMailServer() as mail_server:
        reader, writer = await asyncio.open_connection("127.0.0.1", mail_server.smtp_port)
        # Like `printf ... | nc`: sends all commands at once.
        writer.write(
            b"EHLO client.test\r\nMAIL FROM:<bob@example.test> BODY=8BITMIME\r\n"
            b"RCPT TO:<alice@example.test>\r\nDATA\r\n"
        )
        first = await asyncio.wait_for(reader.readuntil(b"\n354 "), 20)
        writer.write(CONTENT.replace(b"\r\n.", b"\r\n..") + b".\r\nQUIT\r\n")
        replies = (first + await asyncio.wait_for(reader.read(), 20)).decode()
        writer.close()
        codes = " ".join(line[:3] for line in replies.splitlines() if line[3] == " ")
        assert codes == "220 250 250 250 354 250 221"

        queue_id = queue_id_in(replies.splitlines()[-2])
        received, routed, attempt, closed = await mail_server.wait_closed(queue_id)

        assert isinstance(received, MessageAccepted)
        assert str(received.message.envelope.reverse_path) == "bob@example.test"
        assert isinstance(routed, Routed)
        assert routed.route == ToMailbox("alice@example.test")
        assert isinstance(attempt, DeliveryAttempted)
        assert [type(outcome) for outcome in attempt.outcomes] == [Delivered]
        assert isinstance(closed, Closed)
        assert await mail_server.queue() == []

        (stored,) = await mail_server.mailbox("alice")
        assert stored.endswith(CONTENT)
        ours = stored[: -len(CONTENT)].decode()
        assert ours.startswith("Return-Path: <bob@example.test>\r\n")
        assert re.search(rf"^Received: from client\.test .*\r\n(\t.*\r\n)*.*{queue_id}", ours, re.MULTILINE)
        assert not re.search(r"^(?!Return-Path|Delivered-To|Received|[ \t])", ours.rstrip("\r\n"), re.MULTILINE)


async def test_message_sent_by_smtplib_is_delivered() -> None:
    async with InMemoryMailServer() as mail_server:
        await mail_server.wait_closed(
            await mail_server.send(CONTENT, to=["alice@example.test"], options=["BODY=8BITMIME"])
        )
        (stored,) = await mail_server.mailbox("alice")
        assert stored.endswith(CONTENT)
        assert await mail_server.mailbox("bob") == []


async def test_two_local_recipients_get_one_copy_each() -> None:
    async with InMemoryMailServer() as mail_server:
        await mail_server.wait_closed(
            await mail_server.send(b"Subject: all\r\n\r\n.\r\n", to=["alice@example.test", "bob@example.test"])
        )
        assert len(await mail_server.mailbox("alice")) == len(await mail_server.mailbox("bob")) == 1
