"""Tests of the client dialogue: the order of commands, and the outcome of each reply per recipient."""

from __future__ import annotations

import pytest

from delivery.dialogue import Dialogue, Phase, Timeouts
from mail.route import RelayProtocol
from tests.support.clients.dialogue import (
    BARE,
    FULL,
    HELLO,
    outcome_names,
    ready_dialogue,
    reply_codes,
    sent_bytes,
    start_transaction,
)


def test_pipelined_transaction_needs_two_writes() -> None:
    dialogue = ready_dialogue()
    assert start_transaction(dialogue, "a@remote.test", "b@remote.test") == (
        b"MAIL FROM:<sender@example.test> SIZE=22\r\nRCPT TO:<a@remote.test>\r\nRCPT TO:<b@remote.test>\r\nDATA\r\n"
    )
    assert not dialogue.past_dot
    dialogue.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert dialogue.past_dot
    assert dialogue.phase is Phase.CONTENT
    assert sent_bytes(dialogue) == HELLO + b".\r\n"
    dialogue.receive(b"250 2.0.0 queued as X\r\n")
    assert dialogue.phase is Phase.READY
    assert outcome_names(dialogue) == ["Delivered", "Delivered"]
    assert dialogue.result is not None
    assert str(dialogue.result.outcomes[0].reply) == "250 2.0.0 queued as X"
    assert dialogue.result.outcomes[0].remote == "remote.test[192.0.2.1]:25"
    assert start_transaction(dialogue).startswith(b"MAIL")  # RFC 5321 section 4.1.1.4: no RSET after a success


def test_without_pipelining_each_command_waits_for_its_reply() -> None:
    dialogue = ready_dialogue(BARE)
    assert start_transaction(dialogue, "a@remote.test", "b@remote.test") == b"MAIL FROM:<sender@example.test>\r\n"
    for answer, next_command in [
        (b"250 ok\r\n", b"RCPT TO:<a@remote.test>\r\n"),
        (b"550 5.1.1 no\r\n", b"RCPT TO:<b@remote.test>\r\n"),
        (b"250 ok\r\n", b"DATA\r\n"),
        (b"354 go\r\n", HELLO + b".\r\n"),
    ]:
        dialogue.receive(answer)
        assert sent_bytes(dialogue) == next_command
    dialogue.receive(b"250 ok\r\n")
    assert outcome_names(dialogue) == ["Failed", "Delivered"]


def test_without_pipelining_data_needs_an_accepted_recipient() -> None:
    dialogue = ready_dialogue(BARE)
    start_transaction(dialogue)
    dialogue.receive(b"250 ok\r\n")
    sent_bytes(dialogue)
    dialogue.receive(b"450 4.2.0 later\r\n")
    assert sent_bytes(dialogue) == b""
    assert reply_codes(dialogue) == ["450 4.2.0"]
    assert start_transaction(dialogue) == b"RSET\r\n"
    dialogue.receive(b"250 ok\r\n")
    assert sent_bytes(dialogue).startswith(b"MAIL")


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
        dialogue = ready_dialogue()
        start_transaction(dialogue, "a@remote.test", "b@remote.test")
        envelope_answers, go, dot_answer = answers.partition(b"354 go\r\n")
        for part in (envelope_answers + go, dot_answer):
            for start in range(0, len(part), step):
                dialogue.receive(part[start : start + step])
            sent_bytes(dialogue)
        assert reply_codes(dialogue) == expected
        assert dialogue.phase is Phase.READY


def test_354_without_recipients_gets_a_lone_dot() -> None:
    dialogue = ready_dialogue()
    start_transaction(dialogue)
    dialogue.receive(b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
    assert sent_bytes(dialogue) == b".\r\n"
    assert dialogue.result is None
    assert not dialogue.past_dot
    dialogue.receive(b"250 2.0.0 whatever\r\n")  # RFC 2920 section 3.1: not about the refused recipients
    assert reply_codes(dialogue) == ["550 5.1.1"]
    assert start_transaction(dialogue).startswith(b"RSET\r\nMAIL")
    dialogue.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    sent_bytes(dialogue)
    dialogue.receive(b"250 ok\r\n")
    assert outcome_names(dialogue) == ["Delivered"]


@pytest.mark.parametrize("refusal", [b"452 too many\r\n", b"452 4.5.3 too many\r\n", b"552 too many recipients\r\n"])
def test_excess_recipients_are_retried_at_once(refusal: bytes) -> None:
    dialogue = ready_dialogue()
    start_transaction(dialogue, "a@remote.test", "b@remote.test", "c@remote.test")
    dialogue.receive(b"250 ok\r\n250 ok\r\n" + refusal * 2 + b"354 go\r\n")
    sent_bytes(dialogue)
    dialogue.receive(b"250 ok\r\n")
    assert outcome_names(dialogue) == ["Delivered", "Deferred", "Deferred"]
    assert dialogue.result is not None
    assert dialogue.result.retry_now == (1, 2)


def test_refused_first_recipient_is_not_retried_at_once() -> None:
    dialogue = ready_dialogue()
    start_transaction(dialogue)
    dialogue.receive(b"250 ok\r\n452 4.5.3 too many\r\n503 none\r\n")
    assert dialogue.result is not None
    assert dialogue.result.retry_now == ()
    assert reply_codes(dialogue) == ["452 4.5.3"]


def test_lmtp_replies_once_per_recipient() -> None:
    dialogue = ready_dialogue(FULL, RelayProtocol.LMTP)
    start_transaction(dialogue, "a@remote.test", "b@remote.test", "c@remote.test", "d@remote.test")
    dialogue.receive(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    sent_bytes(dialogue)
    dialogue.receive(b"250 2.0.0 a\r\n452 4.2.2 full\r\n")
    assert dialogue.result is None
    dialogue.abort("connection lost")
    assert outcome_names(dialogue) == ["Delivered", "Failed", "Deferred", "Deferred"]


def test_lmtp_354_without_recipients_ends_the_connection() -> None:
    dialogue = ready_dialogue(FULL, RelayProtocol.LMTP)
    start_transaction(dialogue)
    dialogue.receive(b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
    assert reply_codes(dialogue) == ["550 5.1.1"]
    assert dialogue.closed


def test_helo_is_the_fallback_for_ehlo() -> None:
    dialogue = Dialogue("us.test", "remote")
    dialogue.receive(b"220 hi\r\n")
    sent_bytes(dialogue)
    dialogue.receive(b"502 5.5.1 what?\r\n")
    assert sent_bytes(dialogue) == b"HELO us.test\r\n"
    dialogue.receive(b"250 hello\r\n")
    assert dialogue.phase is Phase.READY
    assert not dialogue.capabilities.pipelining


def test_deadlines_follow_the_phase() -> None:
    limits = Timeouts()
    dialogue = Dialogue("us.test", "remote")
    assert dialogue.timeout_seconds(limits) == 300
    dialogue = ready_dialogue()
    start_transaction(dialogue)
    dialogue.receive(b"250 ok\r\n250 ok\r\n")
    assert dialogue.timeout_seconds(limits) == 120
    dialogue.receive(b"354 go\r\n")
    assert dialogue.timeout_seconds(limits) == 600
