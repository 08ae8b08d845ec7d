"""Tests of a transaction: exactly one outcome per recipient for every reply."""

from __future__ import annotations

import pytest

from delivery.capabilities import Capabilities
from delivery.reply_parser import ServerReply
from delivery.transaction import NEEDS_BINARYMIME, NEEDS_SMTPUTF8, Transaction
from mail.envelope import Body, Envelope
from mail.outcome import Outcome
from mail.reply import Reply
from tests.support.builders.delivery import CONTENT, envelope

REMOTE = "mx.far.test[192.0.2.1]:25"
FULL = Capabilities({"SIZE": "1000", "8BITMIME": "", "SMTPUTF8": "", "PIPELINING": ""})
BARE = Capabilities()
OK = ServerReply(250, [b"2.0.0 ok"])


def make(own_envelope: Envelope, content: bytes = CONTENT, capabilities: Capabilities = FULL) -> Transaction:
    return Transaction(own_envelope, content, capabilities, REMOTE)


def outcome_codes(outcomes: tuple[Outcome, ...]) -> list[tuple[str, str]]:
    return [(type(outcome).__name__, outcome.reply.enhanced) for outcome in outcomes]


def test_parameters_follow_the_capabilities() -> None:
    assert make(envelope("a@r.test")).mail == b"MAIL FROM:<sender@example.test> SIZE=%d\r\n" % len(CONTENT)
    assert make(envelope("a@r.test", sender=None), capabilities=BARE).mail == b"MAIL FROM:<>\r\n"
    assert b" BODY=8BITMIME" in make(envelope("a@r.test"), "Subject: ü\r\n\r\n".encode()).mail
    assert b"BODY" not in make(envelope("a@r.test", body=Body.EIGHT_BIT), capabilities=BARE).mail
    assert make(envelope("ü@r.test", utf8=True)).mail.endswith(b" SMTPUTF8\r\n")
    assert make(envelope("a@bücher.test"), capabilities=BARE).rcpts == [b"RCPT TO:<a@xn--bcher-kva.test>\r\n"]


@pytest.mark.parametrize(
    ("own_envelope", "content", "capabilities", "reply"),
    [
        (envelope("ü@r.test", utf8=True), CONTENT, BARE, NEEDS_SMTPUTF8),
        (envelope("a@r.test", body=Body.BINARY), CONTENT, FULL, NEEDS_BINARYMIME),
        (envelope("a@r.test"), CONTENT * 100, FULL, Reply(552, "5.3.4", "")),
    ],
)
def test_unsupported_message_fails_without_a_command(
    own_envelope: Envelope, content: bytes, capabilities: Capabilities, reply: Reply
) -> None:
    result = make(own_envelope, content, capabilities).result_without_server()
    assert result is not None
    assert outcome_codes(result.outcomes) == [("Failed", reply.enhanced)]


def test_final_dot_reply_is_for_accepted_recipients() -> None:
    transaction = make(envelope("a@r.test", "b@r.test", "c@r.test", "d@r.test"))
    transaction.on_mail(OK)
    for answer in (OK, ServerReply(550, [b"5.1.1 who?"]), ServerReply(450, [b"4.2.0 later"]), OK):
        transaction.on_rcpt(answer)
    assert transaction.accepted_count == 2
    transaction.set_accepted_outcomes(ServerReply(250, [b"2.0.0 queued"]))
    result = transaction.result()
    assert outcome_codes(result.outcomes) == [
        ("Delivered", "2.0.0"),
        ("Failed", "5.1.1"),
        ("Deferred", "4.2.0"),
        ("Delivered", "2.0.0"),
    ]
    assert result.retry_now == ()


def test_lmtp_dot_replies_are_per_recipient() -> None:
    transaction = make(envelope("a@r.test", "b@r.test", "c@r.test"))
    transaction.on_mail(OK)
    for answer in (OK, ServerReply(550, [b"5.1.1 who?"]), OK):
        transaction.on_rcpt(answer)
    transaction.set_next_accepted_outcome(ServerReply(250, [b"2.0.0 ok"]))
    transaction.set_next_accepted_outcome(ServerReply(452, [b"4.2.2 full"]))
    assert [name for name, _ in outcome_codes(transaction.result().outcomes)] == ["Delivered", "Failed", "Deferred"]


def test_refused_mail_is_the_outcome_of_all_recipients() -> None:
    transaction = make(envelope("a@r.test", "b@r.test"))
    transaction.on_mail(ServerReply(451, [b"4.7.1 greylisted"]))
    for _ in range(2):  # replies to the pipelined RCPTs
        transaction.on_rcpt(ServerReply(503, [b"5.5.1 no MAIL"]))
    assert transaction.mail_refused
    assert outcome_codes(transaction.result().outcomes) == [("Deferred", "4.7.1")] * 2


@pytest.mark.parametrize("code", [452, 552])
def test_excess_recipients_go_to_the_next_transaction(code: int) -> None:
    transaction = make(envelope("a@r.test", "b@r.test", "c@r.test"))
    transaction.on_mail(OK)
    transaction.on_rcpt(OK)
    for _ in range(2):
        transaction.on_rcpt(ServerReply(code, [b"too many recipients"]))
    transaction.set_accepted_outcomes(OK)
    result = transaction.result()
    assert result.retry_now == (1, 2)
    assert outcome_codes(result.outcomes) == [("Delivered", "2.0.0"), ("Deferred", "4.5.3"), ("Deferred", "4.5.3")]


def test_no_next_transaction_without_an_accepted_recipient() -> None:
    """Otherwise the courier would repeat it for ever."""
    transaction = make(envelope("a@r.test"))
    transaction.on_mail(OK)
    transaction.on_rcpt(ServerReply(452, [b"4.5.3 too many"]))
    assert transaction.result().retry_now == ()


def test_lost_connection_defers_only_recipients_without_a_reply() -> None:
    transaction = make(envelope("a@r.test", "b@r.test"))
    transaction.on_mail(OK)
    transaction.on_rcpt(ServerReply(550, [b"5.1.1 who?"]))
    result = transaction.on_connection_lost(Reply(451, "4.4.2", "lost"), dot_sent=False)
    assert outcome_codes(result.outcomes) == [("Failed", "5.1.1"), ("Deferred", "4.4.2")]
    assert result.connection_lost
    closed = make(envelope("a@r.test")).on_service_closing(ServerReply(421, [b"4.3.2 bye"]), dot_sent=True)
    assert (outcome_codes(closed.outcomes), closed.dot_sent) == ([("Deferred", "4.3.2")], True)


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"", b".\r\n"),
        (b".a\r\n..b\r\nc.\r\n", b"..a\r\n...b\r\nc.\r\n.\r\n"),
    ],
)
def test_dots_are_stuffed(content: bytes, wire: bytes) -> None:
    assert b"".join(make(envelope("a@r.test"), content).dot_stuffed_content()) == wire
