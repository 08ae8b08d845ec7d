"""The client dialogue, fed in every way a network may cut it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery.dialogue import Deadlines, Dialogue, Phase
from mail.envelope import Body, Envelope
from mail.outcome import Deferred, Delivered, Failed
from mail.route import Speaks
from tests.support.delivering import envelope

FULL = b"250-remote.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
BARE = b"250 remote.test\r\n"
HELLO = b"Subject: hi\r\n\r\nhello\r\n"


def ready(ehlo: bytes = FULL, speaks: Speaks = Speaks.SMTP) -> Dialogue:
    dialogue = Dialogue("us.test", "remote.test[192.0.2.1]:25", speaks)
    dialogue.receive(b"220 remote.test\r\n")
    assert said(dialogue) == (b"EHLO us.test\r\n" if speaks is Speaks.SMTP else b"LHLO us.test\r\n")
    dialogue.receive(ehlo)
    assert dialogue.phase is Phase.READY
    return dialogue


def said(dialogue: Dialogue) -> bytes:
    return b"".join(dialogue.to_send())


def kinds(dialogue: Dialogue) -> list[str]:
    assert dialogue.carried is not None
    return [type(outcome).__name__ for outcome in dialogue.carried.outcomes]


def codes(dialogue: Dialogue) -> list[str]:
    assert dialogue.carried is not None
    return [f"{outcome.reply.code} {outcome.reply.enhanced}".strip() for outcome in dialogue.carried.outcomes]


def begin(dialogue: Dialogue, *recipients: str, content: bytes = HELLO, terms: Envelope | None = None) -> bytes:
    dialogue.begin(terms or envelope(*recipients), content)
    return said(dialogue)


def test_pipelined_transaction_is_two_writes() -> None:
    dialogue = ready()
    assert begin(dialogue, "a@remote.test", "b@remote.test") == (
        b"MAIL FROM:<sender@example.test> SIZE=22\r\nRCPT TO:<a@remote.test>\r\nRCPT TO:<b@remote.test>\r\nDATA\r\n"
    )
    assert not dialogue.past_dot
    dialogue.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert dialogue.past_dot
    assert dialogue.phase is Phase.CONTENT
    assert said(dialogue) == HELLO + b".\r\n"
    dialogue.receive(b"250 2.0.0 queued as X\r\n")
    assert dialogue.phase is Phase.READY
    assert kinds(dialogue) == ["Delivered", "Delivered"]
    assert dialogue.carried is not None
    assert str(dialogue.carried.outcomes[0].reply) == "250 2.0.0 queued as X"
    assert dialogue.carried.outcomes[0].remote == "remote.test[192.0.2.1]:25"
    assert begin(dialogue).startswith(b"MAIL")  # RFC 5321 section 4.1.1.4: no RSET after a success


def test_without_pipelining_nothing_is_said_ahead() -> None:
    dialogue = ready(BARE)
    assert begin(dialogue, "a@remote.test", "b@remote.test") == b"MAIL FROM:<sender@example.test>\r\n"
    for answer, next_command in [
        (b"250 ok\r\n", b"RCPT TO:<a@remote.test>\r\n"),
        (b"550 5.1.1 no\r\n", b"RCPT TO:<b@remote.test>\r\n"),
        (b"250 ok\r\n", b"DATA\r\n"),
        (b"354 go\r\n", HELLO + b".\r\n"),
    ]:
        dialogue.receive(answer)
        assert said(dialogue) == next_command
    dialogue.receive(b"250 ok\r\n")
    assert kinds(dialogue) == ["Failed", "Delivered"]


def test_without_pipelining_data_is_not_said_for_nobody() -> None:
    dialogue = ready(BARE)
    begin(dialogue)
    dialogue.receive(b"250 ok\r\n")
    said(dialogue)
    dialogue.receive(b"450 4.2.0 later\r\n")
    assert said(dialogue) == b""
    assert codes(dialogue) == ["450 4.2.0"]
    assert begin(dialogue) == b"RSET\r\n"
    dialogue.receive(b"250 ok\r\n")
    assert said(dialogue).startswith(b"MAIL")


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
def test_pipelined_answers(answers: bytes, expected: list[str]) -> None:
    for step in (len(answers), 1, 7):
        dialogue = ready()
        begin(dialogue, "a@remote.test", "b@remote.test")
        envelope_answers, go, dot_answer = answers.partition(b"354 go\r\n")
        for part in (envelope_answers + go, dot_answer):
            for start in range(0, len(part), step):
                dialogue.receive(part[start : start + step])
            said(dialogue)
        assert codes(dialogue) == expected
        assert dialogue.phase is Phase.READY


def test_354_for_nobody_gets_a_lone_dot() -> None:
    dialogue = ready()
    begin(dialogue)
    dialogue.receive(b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
    assert said(dialogue) == b".\r\n"
    assert dialogue.carried is None
    assert not dialogue.past_dot
    dialogue.receive(b"250 2.0.0 whatever\r\n")  # RFC 2920 section 3.1: says nothing about the refused
    assert codes(dialogue) == ["550 5.1.1"]
    assert begin(dialogue).startswith(b"RSET\r\nMAIL")
    dialogue.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    said(dialogue)
    dialogue.receive(b"250 ok\r\n")
    assert kinds(dialogue) == ["Delivered"]


def test_content_that_was_not_sent_was_not_taken() -> None:
    dialogue = ready()
    begin(dialogue)
    dialogue.receive(b"250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n")
    assert kinds(dialogue) == ["Deferred"]
    assert dialogue.over
    assert said(dialogue) == b""
    assert dialogue.carried is not None
    assert not dialogue.carried.past_dot


def test_content_that_is_still_on_its_way_was_not_taken() -> None:
    dialogue = ready()
    begin(dialogue)
    dialogue.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    said(dialogue)
    dialogue.receive(b"250 taken\r\n", unsent=True)
    assert kinds(dialogue) == ["Deferred"]
    assert dialogue.over


@pytest.mark.parametrize(
    ("answer", "kind"), [(b"554 5.7.1 spam\r\n", "Failed"), (b"452 x\r\n", "Deferred"), (b"421 x\r\n", "Deferred")]
)
def test_content_that_was_refused_before_it_was_sent_is_never_sent(answer: bytes, kind: str) -> None:
    """The server may be waiting for a command, and the content would be read as commands."""
    dialogue = ready()
    begin(dialogue)
    dialogue.receive(b"250 ok\r\n250 ok\r\n354 go\r\n" + answer)
    assert said(dialogue) == b""
    assert kinds(dialogue) == [kind]
    assert dialogue.over
    assert dialogue.carried is not None
    assert not dialogue.carried.past_dot

    local = ready(FULL, Speaks.LMTP)
    begin(local, "a@remote.test", "b@remote.test")
    local.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n" + answer)
    assert said(local) == b""
    assert kinds(local) == [kind, "Deferred"]  # who was not answered for is not failed
    assert local.over


@pytest.mark.parametrize("refusal", [b"452 too many\r\n", b"452 4.5.3 too many\r\n", b"552 too many recipients\r\n"])
def test_too_many_recipients_go_again_at_once(refusal: bytes) -> None:
    dialogue = ready()
    begin(dialogue, "a@remote.test", "b@remote.test", "c@remote.test")
    dialogue.receive(b"250 ok\r\n250 ok\r\n" + refusal * 2 + b"354 go\r\n")
    said(dialogue)
    dialogue.receive(b"250 ok\r\n")
    assert kinds(dialogue) == ["Delivered", "Deferred", "Deferred"]
    assert dialogue.carried is not None
    assert dialogue.carried.again == (1, 2)


def test_a_first_recipient_is_never_too_many() -> None:
    dialogue = ready()
    begin(dialogue)
    dialogue.receive(b"250 ok\r\n452 4.5.3 too many\r\n503 none\r\n")
    assert dialogue.carried is not None
    assert dialogue.carried.again == ()
    assert codes(dialogue) == ["452 4.5.3"]


@pytest.mark.parametrize(
    ("before", "past_dot"),
    [
        (b"", False),
        (b"250 ok\r\n", False),
        (b"250 ok\r\n250 ok\r\n", False),
        (b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n", True),
    ],
)
def test_421_and_loss_at_every_point(before: bytes, past_dot: bool) -> None:
    closing = ready()
    begin(closing, "a@remote.test", "b@remote.test")
    closing.receive(before + b"421 4.3.2 closing\r\n")
    assert closing.over
    assert closing.carried is not None
    assert closing.carried.lost
    assert codes(closing)[0] == "421 4.3.2"

    losing = ready()
    begin(losing, "a@remote.test", "b@remote.test")
    losing.receive(before)
    losing.lost("connection lost")
    assert losing.over
    assert losing.carried is not None
    assert losing.carried.lost
    assert losing.carried.past_dot is past_dot
    first = losing.carried.outcomes[0]
    assert isinstance(first, Deferred)
    assert ("may see it twice" in first.reply.text) is past_dot
    if past_dot:
        assert isinstance(losing.carried.outcomes[1], Failed)  # a verdict that was given stands


def test_lmtp_answers_for_each_recipient() -> None:
    dialogue = ready(FULL, Speaks.LMTP)
    begin(dialogue, "a@remote.test", "b@remote.test", "c@remote.test", "d@remote.test")
    dialogue.receive(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    said(dialogue)
    dialogue.receive(b"250 2.0.0 a\r\n452 4.2.2 full\r\n")
    assert dialogue.carried is None
    dialogue.lost("connection lost")
    assert kinds(dialogue) == ["Delivered", "Failed", "Deferred", "Deferred"]


def test_lmtp_354_for_nobody_ends_the_connection() -> None:
    dialogue = ready(FULL, Speaks.LMTP)
    begin(dialogue)
    dialogue.receive(b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
    assert codes(dialogue) == ["550 5.1.1"]
    assert dialogue.over


def test_helo_when_ehlo_is_unknown() -> None:
    dialogue = Dialogue("us.test", "remote")
    dialogue.receive(b"220 hi\r\n")
    said(dialogue)
    dialogue.receive(b"502 5.5.1 what?\r\n")
    assert said(dialogue) == b"HELO us.test\r\n"
    dialogue.receive(b"250 hello\r\n")
    assert dialogue.phase is Phase.READY
    assert not dialogue.capabilities.pipelining


@pytest.mark.parametrize(
    "answers", [b"554 5.7.1 go away\r\n", b"421 busy\r\n", b"220 hi\r\n450 no\r\n", b"220 hi\r\n500 a\r\n550 b\r\n"]
)
def test_a_server_that_will_not_talk_only_defers(answers: bytes) -> None:
    dialogue = Dialogue("us.test", "remote")
    dialogue.receive(answers)
    assert dialogue.over
    assert dialogue.refusal is not None
    assert dialogue.refusal.is_temporary


@pytest.mark.parametrize("garbage", [b"hello\r\n", b"99 x\r\n", b"250x\r\n", b"100 wait\r\n", b"\r\n", b"999 x\r\n"])
def test_garbage_defers(garbage: bytes) -> None:
    dialogue = ready()
    begin(dialogue)
    dialogue.receive(garbage)
    assert dialogue.over
    assert kinds(dialogue) == ["Deferred"]


@pytest.mark.parametrize("wrong", [b"354 go\r\n", b"250 ok\r\n250 ok\r\n250 go\r\n", b"250 ok\r\n334 a\r\n"])
def test_an_answer_of_the_wrong_kind_defers(wrong: bytes) -> None:
    dialogue = ready()
    begin(dialogue)
    dialogue.receive(wrong)
    assert dialogue.over
    assert kinds(dialogue) == ["Deferred"]


def test_a_word_out_of_turn_ends_an_idle_connection() -> None:
    dialogue = ready()
    dialogue.receive(b"421 4.4.2 idle\r\n")
    assert dialogue.over


@given(st.binary(max_size=300), st.integers(1, 20))
def test_no_bytes_break_the_dialogue(data: bytes, step: int) -> None:
    dialogue = ready()
    begin(dialogue, "a@remote.test", "b@remote.test")
    for start in range(0, len(data), step):
        dialogue.receive(data[start : start + step])
    dialogue.lost("connection lost")
    assert dialogue.carried is not None
    assert len(dialogue.carried.outcomes) == 2


_LINES = st.sampled_from(
    [b"250 ok", b"250-more", b"354 go", b"450 4.2.0 a", b"550 5.1.1 b", b"421 c", b"452 d", b"503 e"]
)


@given(st.lists(_LINES, max_size=12), st.sampled_from([FULL, BARE]), st.sampled_from(list(Speaks)))
def test_every_history_gives_each_recipient_one_outcome(lines: list[bytes], ehlo: bytes, speaks: Speaks) -> None:
    """And none is delivered unless the content was sent."""
    terms = envelope("a@remote.test", "b@remote.test", "c@remote.test")
    dialogue = ready(ehlo, speaks)
    dialogue.begin(terms, HELLO)
    sent = said(dialogue)
    for line in lines:
        dialogue.receive(line + b"\r\n")
        sent += said(dialogue)
        if dialogue.carried is not None:
            break
    dialogue.lost("connection lost")
    assert dialogue.carried is not None
    outcomes = dialogue.carried.outcomes
    assert [outcome.recipient for outcome in outcomes] == [one.address for one in terms.recipients]
    if any(isinstance(outcome, Delivered) for outcome in outcomes):
        assert HELLO + b".\r\n" in sent
    for outcome in outcomes:
        if isinstance(outcome, Deferred):
            assert outcome.reply.is_temporary
        elif isinstance(outcome, Failed):
            assert outcome.reply.is_permanent


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
    dialogue = ready()
    begin(dialogue, content=content)
    dialogue.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert said(dialogue) == wire


@given(st.lists(st.sampled_from([b".", b"..", b"a", b"", b"a.b"]), max_size=8))
def test_a_dotted_message_survives(lines: list[bytes]) -> None:
    content = b"".join(line + b"\r\n" for line in lines)
    dialogue = ready()
    begin(dialogue, content=content)
    dialogue.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    wire = said(dialogue).split(b"\r\n")
    assert wire[-2:] == [b".", b""]
    assert b"." not in wire[:-2]
    assert [line[1:] if line.startswith(b".") else line for line in wire[:-2]] == lines


def _refused_before() -> Iterator[tuple[bytes, Envelope, bytes, str]]:
    yield FULL, envelope(), b"x" * 1001, "552 5.3.4"
    yield BARE, envelope("jürgen@remote.test"), HELLO, "553 5.6.7"
    yield BARE, envelope(sender="jürgen@example.test"), HELLO, "553 5.6.7"
    yield BARE, envelope(utf8=True), "Subject: grüße\r\n\r\n".encode(), "553 5.6.7"
    yield FULL, envelope(body=Body.BINARY), HELLO, "554 5.6.3"


@pytest.mark.parametrize(("ehlo", "terms", "content", "code"), list(_refused_before()))
def test_what_a_server_cannot_take_is_not_offered(ehlo: bytes, terms: Envelope, content: bytes, code: str) -> None:
    dialogue = ready(ehlo)
    dialogue.begin(terms, content)
    assert said(dialogue) == b""
    assert codes(dialogue) == [code]
    assert dialogue.phase is Phase.READY


def test_only_the_recipient_that_needs_smtputf8_fails_without_it() -> None:
    dialogue = ready(BARE)
    dialogue.begin(envelope("jürgen@remote.test", "b@bücher.test"), HELLO)
    said(dialogue)
    dialogue.receive(b"250 ok\r\n")
    assert said(dialogue) == b"RCPT TO:<b@xn--bcher-kva.test>\r\n"
    dialogue.receive(b"250 ok\r\n")
    dialogue.receive(b"354 ok\r\n")
    said(dialogue)
    dialogue.receive(b"250 ok\r\n")
    assert kinds(dialogue) == ["Failed", "Delivered"]


@pytest.mark.parametrize(
    ("ehlo", "terms", "content", "parameters"),
    [
        (FULL, envelope(), HELLO, b" SIZE=22"),
        (FULL, envelope(body=Body.EIGHT_BIT), HELLO, b" SIZE=22 BODY=8BITMIME"),
        (FULL, envelope(), "é\r\n".encode(), b" SIZE=4 BODY=8BITMIME"),
        (FULL, envelope(utf8=True), HELLO, b" SIZE=22 SMTPUTF8"),
        (FULL, envelope("jürgen@remote.test"), HELLO, b" SIZE=22 SMTPUTF8"),
        (BARE, envelope(body=Body.EIGHT_BIT), "é\r\n".encode(), b""),  # goes as it is
        (BARE, envelope(utf8=True), HELLO, b""),  # asked for and not needed
    ],
)
def test_mail_parameters(ehlo: bytes, terms: Envelope, content: bytes, parameters: bytes) -> None:
    dialogue = ready(ehlo)
    dialogue.begin(terms, content)
    assert said(dialogue).split(b"\r\n")[0] == b"MAIL FROM:<sender@example.test>" + parameters


def test_the_null_sender() -> None:
    dialogue = ready(BARE)
    dialogue.begin(envelope(sender=None), HELLO)
    assert said(dialogue) == b"MAIL FROM:<>\r\n"


def test_deadlines_follow_the_phase() -> None:
    limits = Deadlines()
    dialogue = Dialogue("us.test", "remote")
    assert dialogue.allowed_seconds(limits) == 300
    dialogue = ready()
    begin(dialogue)
    dialogue.receive(b"250 ok\r\n250 ok\r\n")
    assert dialogue.allowed_seconds(limits) == 120
    dialogue.receive(b"354 go\r\n")
    assert dialogue.allowed_seconds(limits) == 600
