"""Tests of the client session: the order of commands, and the outcome of each reply per recipient."""

from __future__ import annotations

import pytest

from delivery.client_session import ClientSession, Phase
from delivery.timeouts import Timeouts
from mail.route import RelayProtocol
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


def test_pipelined_transaction_needs_two_writes() -> None:
    session = ready_session()
    assert start_transaction(session, "a@remote.test", "b@remote.test") == (
        b"MAIL FROM:<sender@example.test> SIZE=22\r\nRCPT TO:<a@remote.test>\r\nRCPT TO:<b@remote.test>\r\nDATA\r\n"
    )
    assert not session.dot_sent
    session.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert not session.dot_sent
    assert session.phase is Phase.CONTENT
    assert sent_bytes(session) == HELLO + b".\r\n"
    assert session.dot_sent
    session.receive(b"250 2.0.0 queued as X\r\n")
    assert session.phase is Phase.READY
    assert outcome_names(session) == ["Delivered", "Delivered"]
    assert session.result is not None
    assert str(session.result.outcomes[0].reply) == "250 2.0.0 queued as X"
    assert session.result.outcomes[0].remote == "remote.test[192.0.2.1]:25"
    assert start_transaction(session).startswith(b"MAIL")  # RFC 5321 section 4.1.1.4: no RSET after a success


def test_without_pipelining_each_command_waits_for_its_reply() -> None:
    session = ready_session(BARE)
    assert start_transaction(session, "a@remote.test", "b@remote.test") == b"MAIL FROM:<sender@example.test>\r\n"
    for answer, next_command in [
        (b"250 ok\r\n", b"RCPT TO:<a@remote.test>\r\n"),
        (b"550 5.1.1 no\r\n", b"RCPT TO:<b@remote.test>\r\n"),
        (b"250 ok\r\n", b"DATA\r\n"),
        (b"354 go\r\n", HELLO + b".\r\n"),
    ]:
        session.receive(answer)
        assert sent_bytes(session) == next_command
    session.receive(b"250 ok\r\n")
    assert outcome_names(session) == ["Failed", "Delivered"]


def test_without_pipelining_data_needs_an_accepted_recipient() -> None:
    session = ready_session(BARE)
    start_transaction(session)
    session.receive(b"250 ok\r\n")
    sent_bytes(session)
    session.receive(b"450 4.2.0 later\r\n")
    assert sent_bytes(session) == b""
    assert reply_codes(session) == ["450 4.2.0"]
    assert start_transaction(session) == b"RSET\r\n"
    session.receive(b"250 ok\r\n")
    assert sent_bytes(session).startswith(b"MAIL")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (b"550 5.7.1 no\r\n503 x\r\n503 x\r\n503 x\r\n", ["550 5.7.1", "550 5.7.1"]),
        (b"451 4.3.0 no\r\n503 x\r\n503 x\r\n503 x\r\n", ["451 4.3.0", "451 4.3.0"]),
        (b"250 ok\r\n550 5.1.1 no\r\n450 4.2.1 no\r\n554 5.5.1 none\r\n", ["550 5.1.1", "450 4.2.1"]),
        (b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n451 4.3.2 busy\r\n", ["451 4.3.2", "550 5.1.1"]),
        (b"250 ok\r\n250 ok\r\n250 ok\r\n554 5.6.0 no\r\n", ["554 5.6.0", "554 5.6.0"]),
        (b"250 ok\r\n552 5.2.2 full\r\n250 ok\r\n354 go\r\n250 ok\r\n", ["552 5.2.2", "250"]),
        (b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n452 4.3.1 full\r\n", ["452 4.3.1", "452 4.3.1"]),
        (b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n554 5.7.1 spam\r\n", ["554 5.7.1", "554 5.7.1"]),
    ],
)
def test_outcomes_of_pipelined_replies(answers: bytes, expected: list[str]) -> None:
    for step in (len(answers), 1, 7):
        session = ready_session()
        start_transaction(session, "a@remote.test", "b@remote.test")
        envelope_answers, go, dot_answer = answers.partition(b"354 go\r\n")
        for part in (envelope_answers + go, dot_answer):
            for start in range(0, len(part), step):
                session.receive(part[start : start + step])
            sent_bytes(session)
        assert reply_codes(session) == expected
        assert session.phase is Phase.READY


def test_354_without_recipients_gets_a_lone_dot() -> None:
    session = ready_session()
    start_transaction(session)
    session.receive(b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
    assert sent_bytes(session) == b".\r\n"
    assert session.result is None
    assert not session.dot_sent
    session.receive(b"250 2.0.0 whatever\r\n")  # RFC 2920 section 3.1: not about the refused recipients
    assert reply_codes(session) == ["550 5.1.1"]
    assert start_transaction(session).startswith(b"RSET\r\nMAIL")
    session.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    sent_bytes(session)
    session.receive(b"250 ok\r\n")
    assert outcome_names(session) == ["Delivered"]


@pytest.mark.parametrize("refusal", [b"452 too many\r\n", b"452 4.5.3 too many\r\n", b"552 too many recipients\r\n"])
def test_excess_recipients_are_retried_at_once(refusal: bytes) -> None:
    session = ready_session()
    start_transaction(session, "a@remote.test", "b@remote.test", "c@remote.test")
    session.receive(b"250 ok\r\n250 ok\r\n" + refusal * 2 + b"354 go\r\n")
    sent_bytes(session)
    session.receive(b"250 ok\r\n")
    assert outcome_names(session) == ["Delivered", "Deferred", "Deferred"]
    assert session.result is not None
    assert session.result.retry_now == (1, 2)


def test_refused_first_recipient_is_not_retried_at_once() -> None:
    session = ready_session()
    start_transaction(session)
    session.receive(b"250 ok\r\n452 4.5.3 too many\r\n503 none\r\n")
    assert session.result is not None
    assert session.result.retry_now == ()
    assert reply_codes(session) == ["452 4.5.3"]


def test_lmtp_replies_once_per_recipient() -> None:
    session = ready_session(FULL, RelayProtocol.LMTP)
    start_transaction(session, "a@remote.test", "b@remote.test", "c@remote.test", "d@remote.test")
    session.receive(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    sent_bytes(session)
    session.receive(b"250 2.0.0 a\r\n452 4.2.2 full\r\n")
    assert session.result is None
    session.abort("connection lost")
    assert outcome_names(session) == ["Delivered", "Failed", "Deferred", "Deferred"]


def test_lmtp_354_without_recipients_ends_the_connection() -> None:
    session = ready_session(FULL, RelayProtocol.LMTP)
    start_transaction(session)
    session.receive(b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
    assert reply_codes(session) == ["550 5.1.1"]
    assert session.closed


def test_helo_is_the_fallback_for_ehlo() -> None:
    session = ClientSession("us.test", "remote")
    session.receive(b"220 hi\r\n")
    sent_bytes(session)
    session.receive(b"502 5.5.1 what?\r\n")
    assert sent_bytes(session) == b"HELO us.test\r\n"
    session.receive(b"250 hello\r\n")
    assert session.phase is Phase.READY
    assert not session.capabilities.pipelining


def test_deadlines_follow_the_phase() -> None:
    limits = Timeouts()
    session = ClientSession("us.test", "remote")
    assert session.timeout_seconds(limits) == 300
    session = ready_session()
    start_transaction(session)
    session.receive(b"250 ok\r\n250 ok\r\n")
    assert session.timeout_seconds(limits) == 120
    session.receive(b"354 go\r\n")
    assert session.timeout_seconds(limits) == 600
