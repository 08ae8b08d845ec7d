"""Failed recipients in DSNs of several servers."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from eilpost.load.dsn import failed_recipients
from eilpost.load.workload import Workload, find_load_id
from mail.address import Address
from mail.envelope import Envelope, Recipient
from mail.message import Message, QueueId
from mail.reply import Reply
from router.dsn import FailedRecipient, failure_dsn

POSTFIX = b"""\
Content-Type: multipart/report; report-type=delivery-status; boundary="b/mx"\r
\r
--b/mx\r
Content-Description: Notification\r
Content-Type: text/plain; charset=us-ascii\r
\r
<r0.run@failing1.load.test>: host said: 550\r
\r
--b/mx\r
Content-Description: Delivery report\r
Content-Type: message/delivery-status\r
\r
Reporting-MTA: dns; mx.example.test\r
X-Postfix-Queue-ID: ABC\r
\r
Final-Recipient: rfc822; r0.run@failing1.load.test\r
Original-Recipient: rfc822;r0.run@failing1.load.test\r
Action: failed\r
Status: 5.1.1\r
Diagnostic-Code: smtp; 550 5.1.1 No such user\r
    at this destination\r
\r
Final-Recipient: rfc822; r1.run@d1.load.test\r
Action: delayed\r
Status: 4.4.1\r
\r
--b/mx--\r
"""


def test_postfix_dsn_is_parsed() -> None:
    assert list(failed_recipients(POSTFIX)) == ["r0.run@failing1.load.test"]


@pytest.mark.parametrize(
    "content", [b"", b"Subject: hello\r\n\r\nAction: failed\r\nFinal-Recipient: rfc822; a@b.test\r\n"]
)
def test_other_content_is_not_a_dsn(content: bytes) -> None:
    assert list(failed_recipients(content)) == []


def test_folded_dsn_fields_are_parsed() -> None:
    content = (
        b"Content-Type: message/delivery-status\n\nFINAL-RECIPIENT:\r\n\trfc822;\r\n a@b.test \r\nAction:\n failed\n"
    )
    assert list(failed_recipients(content)) == ["a@b.test"]


@pytest.mark.parametrize("filler", [b" ", b"\t", b"\r\n ", b"\n", b"\r", b":", b"Action:", b"Content-Type:\n"])
def test_dsn_parsing_takes_linear_time(filler: bytes) -> None:
    """Quadratic time blocked the event loop for minutes."""
    content = b"Content-Type: message/delivery-status\r\n\r\nAction: a" + filler * (600_000 // len(filler)) + b"b\r\n"
    started_at = time.process_time()
    assert list(failed_recipients(content)) == []
    assert time.process_time() - started_at < 5


def test_eilpost_dsn_is_parsed() -> None:
    sent = Workload("run1", recipients=2, failing=1.0).message(5)
    names = [Address.parse(name) for name in sent.recipients]
    envelope = Envelope(Address.parse(sent.sender), tuple(Recipient(name) for name in names))
    now = datetime.now(UTC)
    queue_id = QueueId("01M85Z6AY04KY16VEBBMPVZX8A")
    original = Message(queue_id, "default", now, envelope, sent.size_bytes)
    failures = [
        FailedRecipient(Recipient(name), Reply(550, "5.1.1", "no"), "sink.test[127.0.0.1]:2626") for name in names
    ]
    report = failure_dsn(original, failures, sent.head, "mx.example.test", QueueId("01M85Z6AY04KY16VEBBMPVZX8B"), now)
    content = report.content.data  # type: ignore[union-attr]
    assert list(failed_recipients(content)) == list(sent.recipients)
    assert find_load_id(content) == ("run1", 5)
