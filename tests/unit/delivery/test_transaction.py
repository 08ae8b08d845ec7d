"""One transaction, answer by answer: exactly one outcome for each recipient, whatever the server says."""

from __future__ import annotations

import pytest

from delivery.capabilities import Capabilities
from delivery.reply_parser import ServerReply
from delivery.transaction import NEEDS_BINARYMIME, NEEDS_SMTPUTF8, Transaction, header_block
from mail.envelope import Body, Envelope
from mail.outcome import Outcome
from mail.reply import Reply
from tests.support.builders.delivery import CONTENT, envelope

REMOTE = "mx.far.test[192.0.2.1]:25"
FULL = Capabilities({"SIZE": "1000", "8BITMIME": "", "SMTPUTF8": "", "PIPELINING": ""})
BARE = Capabilities()
OK = ServerReply(250, [b"2.0.0 ok"])


def make(terms: Envelope, content: bytes = CONTENT, capabilities: Capabilities = FULL) -> Transaction:
    return Transaction(terms, content, capabilities, REMOTE)


def outcome_codes(outcomes: tuple[Outcome, ...]) -> list[tuple[str, str]]:
    return [(type(outcome).__name__, outcome.reply.enhanced) for outcome in outcomes]


def test_parameters_are_given_to_who_offers_them() -> None:
    assert make(envelope("a@r.test")).mail == b"MAIL FROM:<sender@example.test> SIZE=%d\r\n" % len(CONTENT)
    assert make(envelope("a@r.test", sender=None), capabilities=BARE).mail == b"MAIL FROM:<>\r\n"
    assert b" BODY=8BITMIME" in make(envelope("a@r.test"), "Subject: ü\r\n\r\n".encode()).mail
    assert b"BODY" not in make(envelope("a@r.test", body=Body.EIGHT_BIT), capabilities=BARE).mail
    assert make(envelope("ü@r.test", utf8=True)).mail.endswith(b" SMTPUTF8\r\n")
    assert make(envelope("a@bücher.test"), capabilities=BARE).rcpts == [b"RCPT TO:<a@xn--bcher-kva.test>\r\n"]


@pytest.mark.parametrize(
    ("terms", "content", "capabilities", "reply"),
    [
        (envelope("ü@r.test", utf8=True), CONTENT, BARE, NEEDS_SMTPUTF8),
        (envelope("a@r.test", body=Body.BINARY), CONTENT, FULL, NEEDS_BINARYMIME),
        (envelope("a@r.test"), CONTENT * 100, FULL, Reply(552, "5.3.4", "")),
    ],
)
def test_what_the_server_can_never_take_is_not_asked_for(
    terms: Envelope, content: bytes, capabilities: Capabilities, reply: Reply
) -> None:
    result = make(terms, content, capabilities).result_without_server()
    assert result is not None
    assert outcome_codes(result.outcomes) == [("Failed", reply.enhanced)]


def test_each_recipient_has_its_own_answer_and_the_dot_is_for_those_taken() -> None:
    one = make(envelope("a@r.test", "b@r.test", "c@r.test", "d@r.test"))
    one.on_mail(OK)
    for answer in (OK, ServerReply(550, [b"5.1.1 who?"]), ServerReply(450, [b"4.2.0 later"]), OK):
        one.on_rcpt(answer)
    assert (one.has_accepted, one.accepted_count) == (True, 2)
    one.on_dot_for_all(ServerReply(250, [b"2.0.0 queued"]))
    result = one.result()
    assert outcome_codes(result.outcomes) == [
        ("Delivered", "2.0.0"),
        ("Failed", "5.1.1"),
        ("Deferred", "4.2.0"),
        ("Delivered", "2.0.0"),
    ]
    assert result.retry_now == ()


def test_lmtp_answers_the_dot_for_each() -> None:
    one = make(envelope("a@r.test", "b@r.test", "c@r.test"))
    one.on_mail(OK)
    for answer in (OK, ServerReply(550, [b"5.1.1 who?"]), OK):
        one.on_rcpt(answer)
    one.on_dot_for_next(ServerReply(250, [b"2.0.0 ok"]))
    one.on_dot_for_next(ServerReply(452, [b"4.2.2 full"]))
    assert [name for name, _ in outcome_codes(one.result().outcomes)] == ["Delivered", "Failed", "Deferred"]


def test_a_refused_mail_is_everybodys_answer() -> None:
    one = make(envelope("a@r.test", "b@r.test"))
    one.on_mail(ServerReply(451, [b"4.7.1 greylisted"]))
    for _ in range(2):  # the echo of a pipelined MAIL
        one.on_rcpt(ServerReply(503, [b"5.5.1 no MAIL"]))
    assert not one.mail_accepted
    assert outcome_codes(one.result().outcomes) == [("Deferred", "4.7.1")] * 2


@pytest.mark.parametrize("code", [452, 552])
def test_too_many_recipients_are_for_the_next_transaction(code: int) -> None:
    one = make(envelope("a@r.test", "b@r.test", "c@r.test"))
    one.on_mail(OK)
    one.on_rcpt(OK)
    for _ in range(2):
        one.on_rcpt(ServerReply(code, [b"too many recipients"]))
    one.on_dot_for_all(OK)
    result = one.result()
    assert result.retry_now == (1, 2)
    assert outcome_codes(result.outcomes) == [("Delivered", "2.0.0"), ("Deferred", "4.5.3"), ("Deferred", "4.5.3")]


def test_nothing_is_for_the_next_transaction_when_the_server_took_nobody() -> None:
    """Or it would never end."""
    one = make(envelope("a@r.test"))
    one.on_mail(OK)
    one.on_rcpt(ServerReply(452, [b"4.5.3 too many"]))
    assert one.result().retry_now == ()


def test_who_has_no_answer_when_it_breaks_off_is_deferred_and_who_has_one_keeps_it() -> None:
    one = make(envelope("a@r.test", "b@r.test"))
    one.on_mail(OK)
    one.on_rcpt(ServerReply(550, [b"5.1.1 who?"]))
    result = one.on_connection_lost(Reply(451, "4.4.2", "lost"), past_dot=False)
    assert outcome_codes(result.outcomes) == [("Failed", "5.1.1"), ("Deferred", "4.4.2")]
    assert result.connection_lost
    closed = make(envelope("a@r.test")).on_service_closing(ServerReply(421, [b"4.3.2 bye"]), past_dot=True)
    assert (outcome_codes(closed.outcomes), closed.past_dot) == ([("Deferred", "4.3.2")], True)


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


def test_the_header_block() -> None:
    assert header_block(b"A: b\r\nC: d\r\n\r\nbody") == b"A: b\r\nC: d\r\n"
    assert header_block(b"\r\nbody") == b""
    assert header_block(b"A: " + b"x" * 100, 10) == b"A: " + b"x" * 7
