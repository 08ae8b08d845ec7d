"""The Received field, the hop count, and content without a header."""

from __future__ import annotations

from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.utils import parsedate_to_datetime

import pytest
import structlog

from delivery.capabilities import Capabilities
from delivery.transaction import Transaction
from ingress.content import ContentStart, content_start
from ingress.received import count_hops, received_field, with_protocol
from mail.address import Address
from mail.envelope import Envelope, Recipient
from mail.header_section import header_section
from mail.log import Down
from mail.message import Client, Inline, QueueId
from tests.support.servers.ingress import running_ingress

NOW = datetime(2026, 3, 1, 4, 5, 6, tzinfo=UTC)
QUEUE_ID = QueueId("01M85DXKVK0FGNCFAQP8N9B05F")


def line(helo: str = "client.test", ip: str = "192.0.2.1", recipient: Address | None = None) -> bytes:
    client = Client(ip=ip, port=1, helo=helo, protocol="ESMTP")
    return received_field(client=client, hostname="mx.test", queue_id=QUEUE_ID, recipient=recipient, now=NOW)


def test_received_field() -> None:
    assert line(recipient=Address("bob", "example.test")) == (
        b"Received: from client.test ([192.0.2.1])\r\n"
        b"\tby mx.test (eilpost) with ESMTP id 01M85DXKVK0FGNCFAQP8N9B05F\r\n"
        b"\tfor <bob@example.test>;\r\n\tSun, 01 Mar 2026 04:05:06 +0000\r\n"
    )
    assert b"for" not in line()
    assert b"([IPv6:2001:db8::1])" in line(ip="2001:db8::1")
    assert b"for" not in line(recipient=Address("böb", "example.test"))
    assert b"for <bob@xn--bcher-kva.test>" in line(recipient=Address("bob", "bücher.test"))


def test_received_field_is_parseable_for_any_helo_name() -> None:
    for helo in ("x", "a(b", "a)b", 'a"b', "a\\b", "<a>;", "\x7f\x00\r\nX: y"):
        message = message_from_bytes(line(helo) + b"Subject: x\r\n\r\n", policy=policy.default)
        assert message.keys() == ["Received", "Subject"]
        value = str(message["Received"])
        assert parsedate_to_datetime(value.rpartition(";")[2].strip()) == NOW
        assert not set('()\\"') & set(value.split(" ")[1])


def test_helo_name_cannot_look_like_another_clause_of_the_field() -> None:
    name = "x;by,a@b<c>[192.0.2.9]"
    assert b"Received: from x?by?a?b?c?[192.0.2.9] ([192.0.2.1])\r\n" in line(name)
    assert b"Received: from [IPv6:2001:db8::1] (" in line("[IPv6:2001:db8::1]")
    assert b"Received: from a_b-c.test (" in line("a_b-c.test")


def test_protocol_names() -> None:
    assert with_protocol(extended=False, smtputf8=False) == "SMTP"
    assert with_protocol(extended=True, smtputf8=False, tls=True, authenticated=True) == "ESMTPSA"
    assert with_protocol(extended=True, smtputf8=True, tls=True) == "UTF8SMTPS"


def test_hop_count_ignores_the_body() -> None:
    content = b"Received: a\r\nRECEIVED:b\r\n\treceived: folded\r\nX-Received: c\r\n\r\nReceived: body\r\n"
    assert count_hops(header_section(content, 1000)) == 2
    assert count_hops(b"Received: a\r\nno end") == 1


def test_hop_count_includes_fields_with_blank_before_colon() -> None:
    assert (
        count_hops(
            b"Received : a\r\nreceived\t \t: b\r\n\tReceived : folded\r\nReceived-By : c\r\nReceived\r\n : d\r\n"
        )
        == 2
    )


@pytest.mark.parametrize(
    ("first_bytes", "start"),
    [
        (b"Subject: x\r\n", ContentStart.HEADER),
        (b"X-Odd :y\r\n", ContentStart.HEADER),
        (b"\r\nbody", ContentStart.HEADER),
        (b"\nbody", ContentStart.HEADER),
        (b"", ContentStart.BODY),
        (b" folded\r\n", ContentStart.BODY),
        (b".. x\r\n", ContentStart.BODY),
        (b". :x\r\n", ContentStart.BODY),
        (b"hello server\r\n", ContentStart.BODY),
        (b"From bob Mon\r\nSubject: x\r\n", ContentStart.MAILBOX_LINE),
        (b"From bob Mon\r\ntext\r\n", ContentStart.BODY),
        (b"http://x\r\n", ContentStart.HEADER),
    ],
)
def test_start_of_the_content(first_bytes: bytes, start: ContentStart) -> None:
    assert content_start(first_bytes) is start


@pytest.mark.parametrize("content", [b"hello\r\n", b" folds into ours\r\n", b"", b".\r\n", b"\r\nbody\r\n"])
async def test_received_field_never_joins_the_body(content: bytes) -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.start_data()
        client.send(content.replace(b".", b"..") + b".\r\n")
        assert (await client.read_reply()).startswith("250")
        message = message_from_bytes(server.content(), policy=policy.SMTP)
        assert message.keys() == ["Received"]
        assert server.content().endswith(b"\r\n\r\n" + content.removeprefix(b"\r\n"))


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (
            b"From 1111 Mon Sep 17 00:00:00 2001\r\nSubject: x\r\n\r\ntext\r\n",
            ["Received", "X-Mailbox-Line", "Subject"],
        ),
        (b">from bob\r\nSubject: x\r\n\r\ntext\r\n", ["Received", "X-Mailbox-Line", "Subject"]),
        (b"From bob\r\n\r\ntext\r\n", ["Received", "X-Mailbox-Line"]),
        (b"From here on this is text\r\nand this too\r\n", ["Received"]),
        (b"Subject: two\r\r\nFrom: b@example.test\r\r\n\r\r\ntext\r\r\n", ["Received", "Subject", "From"]),
        (b"Subject: many\r\r\r\r\r\r\nFrom: b@example.test\r\n\r\r\r\r\ntext\r\n", ["Received", "Subject", "From"]),
    ],
)
async def test_header_of_sloppy_clients_stays_a_header(data: bytes, stored: list[str]) -> None:
    """A line of an mbox file before the header, and more than one CR before a line's LF."""
    async with running_ingress() as server:
        client = await server.connect()
        await client.start_data()
        client.send(data + b".\r\n")
        assert (await client.read_reply()).startswith("250")
        message = message_from_bytes(server.content(), policy=policy.SMTP)
        assert message.keys() == stored
        assert not message.defects
        assert b"\r\r" not in server.content()
        assert b" \r\n" not in server.content()


async def test_accepted_log_line_has_recipients_and_stored_size() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("EHLO client.test")
        await client.command("MAIL FROM:<bob@example.test>")
        for number in range(25):
            await client.command(f"RCPT TO:<u{number}@catch.test>")
        await client.command("DATA")
        with structlog.testing.capture_logs() as lines:
            client.send(b"Subject: x\r\n\r\n.\r\n")
            await client.read_reply()
        [line] = [line for line in lines if line["event"] == "message accepted"]
        assert line["to"] == [f"u{number}@catch.test" for number in range(20)]
        assert (line["recipients"], line["size_bytes"]) == (25, len(server.content()))
        assert None not in line.values()


async def test_refusal_before_ehlo_is_logged_without_helo() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        server.log.current_condition = Down("away")
        with structlog.testing.capture_logs() as lines:
            late = await server.connect()
            await late.read_reply()
        assert [(line["event"], None in line.values()) for line in lines] == [("command refused", False)]


async def test_accepted_message_records_client_and_protocol() -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("EHLO [192.0.2.9]")
        for command in (
            "MAIL FROM:<böb@catch.test> SMTPUTF8",
            "RCPT TO:<ülf@catch.test>",
            "RCPT TO:<Postmaster>",
            "DATA",
        ):
            assert (await client.command(command))[0] in "23", command
        client.send("Subject: ü\r\n\r\n.\r\n".encode())
        reply = await client.read_reply()
        (accepted,) = server.log.accepted
        message = accepted.message
        assert reply == f"250 2.0.0 Ok: queued as {message.queue_id}"
        assert message.size_bytes == len(server.content())
        assert message.envelope.smtputf8
        assert message.envelope.body == "8BITMIME"  # the client sent no BODY parameter, but 8-bit data
        assert [str(rcpt.original) for rcpt in message.envelope.recipients] == [
            "ülf@catch.test",
            "postmaster@mx.example.test",
        ]
        assert str(message.envelope.recipients[1].address) == "postmaster@example.test"
        assert message.client is not None
        assert (message.client.ip, message.client.protocol) == ("127.0.0.1", "UTF8SMTP")
        assert b"with UTF8SMTP id " + message.queue_id.encode() in server.content()


async def test_our_own_lines_never_make_a_message_require_smtputf8() -> None:
    async with running_ingress() as server:
        for recipient in ("bob@catch.müller.test", "bob@catch.test", "ülf@catch.test"):
            client = await server.connect()
            await client.read_reply()
            for command in ("EHLO x", "MAIL FROM:<> SMTPUTF8", f"RCPT TO:<{recipient}>", "DATA"):
                assert (await client.command(command))[0] in "23", command
            assert (await client.command("Subject: x\r\n\r\n.")).startswith("250")
        for accepted in server.log.accepted:
            content = accepted.content
            assert isinstance(content, Inline)
            assert content.data.isascii()
            ascii_recipients = Envelope(None, (Recipient(Address("x", "müller.test")),), smtputf8=True)
            transaction = Transaction(ascii_recipients, content.data, Capabilities(), "mx.test")
            assert transaction.rcpts == [b"RCPT TO:<x@xn--mller-kva.test>\r\n"]
