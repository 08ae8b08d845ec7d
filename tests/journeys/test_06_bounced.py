"""Journey 6: a 5xx from the next hop: the sender's mailbox gets a DSN that a standard parser reads (RFC 3464)."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage

from mail.outcome import Failed
from mail.record import Bounced, DeliveryAttempted
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.scripted_remote import ScriptedRemote

CONTENT = (
    b"From: bob@example.test\r\nTo: gone@elsewhere.test\r\nSubject: are you there?\r\n"
    b"Message-ID: <1@example.test>\r\n\r\nhello\r\n"
)


def parse(report: bytes) -> EmailMessage:
    message = email.message_from_bytes(report, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert not part.defects, part.defects
    return message


def fields_of(report: EmailMessage) -> tuple[EmailMessage, list[EmailMessage]]:
    """Per-message fields and the fields of each recipient (RFC 3464 sections 2.2, 2.3)."""
    (status,) = [part for part in report.walk() if part.get_content_type() == "message/delivery-status"]
    groups = status.get_payload()
    assert isinstance(groups, list)
    about, *recipients = [group for group in groups if isinstance(group, EmailMessage) and group.keys()]
    return about, recipients


async def test_message_refused_by_the_next_hop_bounces() -> None:
    async with (
        ScriptedRemote({"RCPT": ["550 5.1.1 <gone@elsewhere.test>: no such user"]}) as remote,
        InMemoryMailServer({"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}}) as mail_server,
    ):
        queue_id = await mail_server.send(CONTENT, to=["gone@elsewhere.test"])
        report_id = await mail_server.wait_bounce(queue_id)
        (attempt,) = await mail_server.details(queue_id, DeliveryAttempted)
        assert [type(outcome) for outcome in attempt.outcomes] == [Failed]
        (bounced,) = await mail_server.details(queue_id, Bounced)
        assert [str(name) for name in bounced.recipients] == ["gone@elsewhere.test"]
        assert bounced.dsn == report_id
        (stored,) = await mail_server.mailbox("bob")

    report = parse(stored)
    assert report["Return-Path"] == "<>"  # RFC 3461 section 6: never bounce a report
    assert report.get_content_type() == "multipart/report"
    assert report.get_param("report-type") == "delivery-status"
    assert "bob@example.test" in report["To"]
    assert report["Auto-Submitted"].startswith("auto-")  # RFC 3834
    about, (recipient,) = fields_of(report)
    assert about["Reporting-MTA"] == "dns; mx.example.test"
    assert recipient["Final-Recipient"] == "rfc822; gone@elsewhere.test"
    assert recipient["Action"] == "failed"
    assert recipient["Status"] == "5.1.1"
    assert "550 5.1.1" in recipient["Diagnostic-Code"]
    kinds = [part.get_content_type() for part in report.walk()]
    assert kinds[1] == "text/plain"
    assert {"message/rfc822", "text/rfc822-headers"} & set(kinds)
    assert b"Message-ID: <1@example.test>" in stored
    text = report.get_body(("plain",))
    assert text is not None
    assert "gone@elsewhere.test" in text.get_content()


async def test_message_bounces_after_its_lifetime() -> None:
    async with (
        ScriptedRemote({"RCPT": ["451 4.2.1 later"]}) as remote,
        InMemoryMailServer(
            {
                "delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"},
                "router": {"retry_delays": ["200ms"], "queue_lifetime": "1s"},
            }
        ) as mail_server,
    ):
        queue_id = await mail_server.send(CONTENT, to=["gone@elsewhere.test"])
        await mail_server.wait_bounce(queue_id)
        assert len(await mail_server.details(queue_id, DeliveryAttempted)) >= 2
        (stored,) = await mail_server.mailbox("bob")
        _about, (recipient,) = fields_of(parse(stored))
        assert recipient["Action"] == "failed"
        assert "451 4.2.1 later" in recipient["Diagnostic-Code"]  # the last reply of the next hop
