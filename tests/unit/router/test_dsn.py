"""Tests of DSNs, parsed with Python's `email` package."""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mail.envelope import Body, Recipient
from mail.message import Inline, QueueId
from mail.record import Accepted
from mail.reply import Reply
from router.dsn import QUOTED_BYTES_MAX, FailedRecipient, failure_dsn, original_recipient
from tests.support.builders.routing import CONTENT, FAILED_REPLY, REMOTE, START, address, message, recipient

DSN_ID = QueueId("01M80000000000000000000DSN")
HOST = "mx.example.test"


def write(
    *failures: FailedRecipient, headers: bytes = CONTENT, sender: str = "sender@far.test", **terms: object
) -> Accepted:
    original = message(sender=sender)
    original = replace(original, envelope=replace(original.envelope, **terms))
    return failure_dsn(
        original,
        failures or (FailedRecipient(recipient("u@far.test"), FAILED_REPLY, REMOTE),),
        headers,
        HOST,
        DSN_ID,
        START,
    )


def read(report: Accepted) -> tuple[EmailMessage, list[EmailMessage]]:
    assert isinstance(report.content, Inline)
    assert report.message.size_bytes == len(report.content.data)
    assert b"\n" not in report.content.data.replace(b"\r\n", b"")
    assert all(len(line) <= 998 for line in report.content.data.split(b"\r\n"))
    parsed = message_from_bytes(report.content.data, _class=EmailMessage, policy=policy.default)
    assert not parsed.defects
    parts = list(parsed.iter_parts())
    assert not any(part.defects for part in parts)
    return parsed, parts  # type: ignore[return-value]


def test_long_lines_of_the_quoted_header_are_folded() -> None:
    """A message with 40 references in one line, and a word that is longer than a line."""
    references = b" ".join(b"<%d@%s.example.test>" % (number, b"m" * 40) for number in range(40))
    header = b"References: " + references + b"\r\nX-Word: " + b"w" * 2000 + b"\r\n\r\ntext\r\n"
    _, (_, _, quoted) = read(write(headers=header))
    fields = message_from_bytes(quoted.get_payload(decode=True), policy=policy.default)
    assert fields["References"].split() == references.decode().split()
    assert fields["X-Word"].replace(" ", "") == "w" * 2000


def test_fields_are_folded_by_octets() -> None:
    """A reply of 900 characters that are three octets each."""
    far = FailedRecipient(recipient("漢@far.test"), Reply(550, "5.1.1", "漢 " * 450), REMOTE)
    read(write(far))


def test_dsn_has_three_parts_and_goes_from_null_path_to_the_sender() -> None:
    report = write()
    assert report.message.envelope.reverse_path is None
    assert [str(rcpt.address) for rcpt in report.message.envelope.recipients] == ["sender@far.test"]
    assert (report.message.envelope.body, report.message.envelope.smtputf8) == (Body.SEVEN_BIT, False)
    parsed, (people, status, headers) = read(report)
    assert parsed.get_content_type() == "multipart/report"
    assert parsed["content-type"].params["report-type"] == "delivery-status"
    assert parsed["auto-submitted"] == "auto-replied"
    assert parsed["from"].addresses[0].addr_spec == f"MAILER-DAEMON@{HOST}"
    assert parsed["in-reply-to"] == parsed["references"] == "<one@far.test>"
    assert "No such user here" in people.get_content()
    assert status.get_content_type() == "message/delivery-status"
    fields, block = status.iter_parts()
    assert fields["reporting-mta"] == f"dns; {HOST}"
    assert block["final-recipient"] == "rfc822; u@far.test"
    assert (block["action"], block["status"]) == ("failed", "5.1.1")
    assert block["remote-mta"] == "dns; mx.far.test"
    assert block["diagnostic-code"] == "smtp; 550 5.1.1 No such user here"
    assert block["original-recipient"] is None
    assert headers.get_content_type() == "text/rfc822-headers"
    assert "body" not in headers.get_content()
    assert "Subject: hello" in headers.get_content()


def test_envid_and_orcpt_are_returned() -> None:
    given_one = Recipient(address("u@far.test"), address("list@example.test"), orcpt="rfc822;Some+2BOne@example.test")
    expanded = Recipient(address("v@far.test"), address("list@example.test"))
    report = write(FailedRecipient(given_one, FAILED_REPLY), FailedRecipient(expanded, FAILED_REPLY), envid="QQ 314")
    fields, first, second = read(report)[1][1].iter_parts()
    assert fields["original-envelope-id"] == "QQ 314"
    assert first["original-recipient"] == "rfc822; Some+One@example.test"
    assert first["diagnostic-code"].startswith("X-Eilpost;")
    assert first["remote-mta"] is None
    assert second["original-recipient"] is None  # no ORCPT given; the human-readable part names the original address


def test_international_address_makes_a_global_dsn() -> None:
    report = write(FailedRecipient(recipient("jürgen@bücher.test"), FAILED_REPLY), sender="käthe@far.test")
    assert report.message.envelope.smtputf8
    assert report.message.envelope.body is Body.EIGHT_BIT
    assert isinstance(report.content, Inline)
    data = report.content.data
    assert b"Content-Type: message/global-delivery-status" in data
    assert b"Content-Type: message/global-headers" in data
    assert "Final-Recipient: utf-8; jürgen@bücher.test".encode() in data


def test_domains_are_written_in_a_labels_and_need_no_smtputf8() -> None:
    report = write(FailedRecipient(recipient("u@bücher.test"), FAILED_REPLY), sender="s@müller.test")
    assert isinstance(report.content, Inline)
    data = report.content.data
    assert not report.message.envelope.smtputf8
    assert b"To: <s@xn--mller-kva.test>\r\n" in data
    assert b"Final-Recipient: rfc822; u@xn--bcher-kva.test\r\n" in data
    assert b"Content-Type: message/delivery-status" in data
    assert data.partition(b"\r\n\r\n")[0].isascii()


def test_dsn_to_an_ascii_sender_needs_no_smtputf8() -> None:
    """What the message and its recipients need must not keep the report from its own recipient."""
    report = write(FailedRecipient(recipient("jürgen@far.test"), FAILED_REPLY))
    assert isinstance(report.content, Inline)
    assert not report.message.envelope.smtputf8
    assert report.message.envelope.body is Body.EIGHT_BIT
    assert b"message/global-delivery-status" in report.content.data
    assert report.content.data.partition(b"\r\n\r\n")[0].isascii()


@pytest.mark.parametrize(
    ("headers", "reply", "encoding"),
    [
        (CONTENT, FAILED_REPLY, None),
        ("Subject: grüße\r\n\r\n".encode(), FAILED_REPLY, "8bit"),
        (CONTENT, Reply(550, "5.1.1", "Kein Käfer"), "8bit"),
    ],
)
def test_dsn_with_8bit_part_declares_8bit(headers: bytes, reply: Reply, encoding: str | None) -> None:
    """RFC 2045 section 6.4: a multipart with an 8-bit part is 8-bit itself."""
    report = write(FailedRecipient(recipient("u@far.test"), reply, REMOTE), headers=headers)
    parsed, parts = read(report)
    assert parsed["content-transfer-encoding"] == encoding
    assert any(part["content-transfer-encoding"] == "8bit" for part in parts) is (encoding is not None)
    assert report.message.envelope.body is (Body.SEVEN_BIT if encoding is None else Body.EIGHT_BIT)


@given(text=st.text(max_size=3000), envid=st.text(max_size=100), orcpt=st.text(max_size=100))
def test_foreign_text_cannot_start_a_field_or_a_part(text: str, envid: str, orcpt: str) -> None:
    rcpt = Recipient(address("u@far.test"), orcpt=orcpt)
    report = write(FailedRecipient(rcpt, Reply(550, "5.0.0", text), f"mx[{text}"), envid=envid)
    _, parts = read(report)
    assert len(parts) == 3
    fields, block = parts[1].iter_parts()
    of_message = "original-envelope-id reporting-mta x-eilpost-queue-id arrival-date"
    of_recipient = "original-recipient final-recipient action status remote-mta diagnostic-code last-attempt-date"
    assert {name.lower() for name in fields} == set(of_message.split())
    assert {name.lower() for name in block} == set(of_recipient.split())


@pytest.mark.parametrize(
    ("headers", "quoted"),
    [
        (b"", None),
        (b"\r\nno header at all", None),
        (b"A: 1\r\nB: cut in the mid", b"A: 1\r\n"),
        (b"A: 1\r\n\r\nbody", b"A: 1\r\n"),
        (b"X: " + b"y" * 2 * QUOTED_BYTES_MAX, None),
    ],
)
def test_only_complete_header_lines_are_quoted(headers: bytes, quoted: bytes | None) -> None:
    parts = read_raw_parts(write(headers=headers))
    assert len(parts) == (3 if quoted else 2)
    if quoted:
        assert parts[2].endswith(b"\r\n\r\n" + quoted + b"\r\n")


def read_raw_parts(report: Accepted) -> list[bytes]:
    assert isinstance(report.content, Inline)
    boundary = message_from_bytes(report.content.data).get_boundary()
    assert boundary is not None
    return report.content.data.split(b"--" + boundary.encode())[1:-1]


def test_dsn_about_a_dsn_is_refused() -> None:
    with pytest.raises(AssertionError):
        failure_dsn(
            message(sender=None), (FailedRecipient(recipient("u@far.test"), FAILED_REPLY),), b"", HOST, DSN_ID, START
        )


def test_orcpt_is_decoded_and_sanitised() -> None:
    assert original_recipient("rfc822;a+0D+0AX-Bad: 1") == "rfc822; a X-Bad: 1"
    assert original_recipient("plain") == "rfc822; plain"
