"""Tests of what the client session sends: MAIL parameters, dot-stuffed content, and unsupported messages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery.client_session import Phase
from mail.envelope import Body, Envelope
from tests.support.builders.delivery import envelope
from tests.support.clients.client_session import (
    BARE,
    FULL,
    HELLO,
    outcome_names,
    ready_session,
    reply_codes,
    sent_bytes,
    start_transaction,
)


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"", b".\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a\r\n.", b"a\r\n..\r\n.\r\n"),
        (b"a\r\n.\r\n.\r\n", b"a\r\n..\r\n..\r\n.\r\n"),
        (b"a.\r\nb", b"a.\r\nb\r\n.\r\n"),
        (b"a\r", b"a\r\r\n.\r\n"),
    ],
)
def test_dot_stuffing(content: bytes, wire: bytes) -> None:
    session = ready_session()
    start_transaction(session, content=content)
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert sent_bytes(session) == wire


@given(st.lists(st.sampled_from([b".", b"..", b"a", b"", b"a.b"]), max_size=8))
def test_dot_stuffing_is_reversible(lines: list[bytes]) -> None:
    content = b"".join(line + b"\r\n" for line in lines)
    session = ready_session()
    start_transaction(session, content=content)
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    wire = sent_bytes(session).split(b"\r\n")
    assert wire[-2:] == [b".", b""]
    assert b"." not in wire[:-2]
    assert [line[1:] if line.startswith(b".") else line for line in wire[:-2]] == lines


def _refused_before() -> Iterator[tuple[bytes, Envelope, bytes, str]]:
    yield FULL, envelope(), b"x" * 1001, "552 5.3.4"
    yield BARE, envelope("jürgen@remote.test"), HELLO, "553 5.6.7"
    yield BARE, envelope(sender="jürgen@example.test"), HELLO, "553 5.6.7"
    yield BARE, envelope(utf8=True), "Subject: grüße\r\n\r\n".encode(), "553 5.6.7"
    yield FULL, envelope(body=Body.BINARY), HELLO, "554 5.6.3"


@pytest.mark.parametrize(("ehlo", "own_envelope", "content", "code"), list(_refused_before()))
def test_unsupported_message_is_not_sent(ehlo: bytes, own_envelope: Envelope, content: bytes, code: str) -> None:
    session = ready_session(ehlo)
    session.start_transaction(own_envelope, content)
    assert sent_bytes(session) == b""
    assert reply_codes(session) == [code]
    assert session.phase is Phase.READY


def test_only_the_recipient_that_needs_smtputf8_fails_without_it() -> None:
    session = ready_session(BARE)
    session.start_transaction(envelope("jürgen@remote.test", "b@bücher.test"), HELLO)
    sent_bytes(session)
    session.receive(b"250 ok\r\n")
    assert sent_bytes(session) == b"RCPT TO:<b@xn--bcher-kva.test>\r\n"
    session.receive(b"250 ok\r\n")
    assert sent_bytes(session) == b"DATA\r\n"
    session.receive(b"354 ok\r\n")
    sent_bytes(session)
    session.receive(b"250 ok\r\n")
    assert outcome_names(session) == ["Failed", "Delivered"]


@pytest.mark.parametrize(
    ("ehlo", "own_envelope", "content", "parameters"),
    [
        (FULL, envelope(), HELLO, b" SIZE=22"),
        (FULL, envelope(body=Body.EIGHT_BIT), HELLO, b" SIZE=22 BODY=8BITMIME"),
        (FULL, envelope(), "é\r\n".encode(), b" SIZE=4 BODY=8BITMIME"),
        (FULL, envelope(utf8=True), HELLO, b" SIZE=22 SMTPUTF8"),
        (FULL, envelope("jürgen@remote.test"), HELLO, b" SIZE=22 SMTPUTF8"),
        (BARE, envelope(body=Body.EIGHT_BIT), "é\r\n".encode(), b""),  # sent unchanged
        (BARE, envelope(utf8=True), HELLO, b""),  # requested but not needed
    ],
)
def test_mail_parameters(ehlo: bytes, own_envelope: Envelope, content: bytes, parameters: bytes) -> None:
    session = ready_session(ehlo)
    session.start_transaction(own_envelope, content)
    assert sent_bytes(session).split(b"\r\n")[0] == b"MAIL FROM:<sender@example.test>" + parameters


def test_null_reverse_path() -> None:
    session = ready_session(BARE)
    session.start_transaction(envelope(sender=None), HELLO)
    assert sent_bytes(session) == b"MAIL FROM:<>\r\n"
