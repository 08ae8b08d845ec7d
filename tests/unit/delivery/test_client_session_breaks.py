"""Tests of the client session with lost connections, unexpected and malformed replies: one outcome per recipient."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery.client_session import ClientSession
from mail.outcome import Deferred, Delivered, Failed
from mail.route import RelayProtocol
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


def test_250_before_content_is_sent_defers() -> None:
    session = ready_session()
    start_transaction(session)
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n")
    assert outcome_names(session) == ["Deferred"]
    assert session.closed
    assert sent_bytes(session) == b""
    assert session.result is not None
    assert not session.result.dot_sent


def test_250_while_content_is_being_sent_defers() -> None:
    session = ready_session()
    start_transaction(session)
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    session.to_send()  # and the driver has not written all of it
    session.receive(b"250 taken\r\n")
    assert outcome_names(session) == ["Deferred"]
    assert session.closed


@pytest.mark.parametrize(
    ("answer", "kind"), [(b"554 5.7.1 spam\r\n", "Failed"), (b"452 x\r\n", "Deferred"), (b"421 x\r\n", "Deferred")]
)
def test_content_refused_early_is_not_sent(answer: bytes, kind: str) -> None:
    """The server may wait for a command and would parse the content as commands."""
    session = ready_session()
    start_transaction(session)
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert session.to_send()  # and the driver has not written all of it
    session.receive(answer)
    assert sent_bytes(session) == b""
    assert outcome_names(session) == [kind]
    assert session.closed  # also if the rest is in a buffer: another transaction would follow it
    assert session.result is not None
    assert not session.result.dot_sent

    local = ready_session(FULL, RelayProtocol.LMTP)
    start_transaction(local, "a@remote.test", "b@remote.test")
    local.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert local.to_send()
    local.receive(answer)
    assert sent_bytes(local) == b""
    assert outcome_names(local) == [kind, "Deferred"]  # a recipient without a reply is not failed
    assert local.closed


@pytest.mark.parametrize(
    ("before", "dot_sent"),
    [
        (b"", False),
        (b"250 ok\r\n", False),
        (b"250 ok\r\n250 ok\r\n", False),
        (b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n", False),
        (b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n", True),
    ],
)
def test_421_and_lost_connection_between_mail_and_the_final_reply(before: bytes, dot_sent: bool) -> None:
    closing = ready_session()
    start_transaction(closing, "a@remote.test", "b@remote.test")
    closing.receive(before)
    if dot_sent:
        sent_bytes(closing)
    closing.receive(b"421 4.3.2 closing\r\n")
    assert closing.closed
    assert closing.result is not None
    assert closing.result.connection_lost
    assert closing.result.dot_sent is dot_sent
    assert reply_codes(closing)[0] == "421 4.3.2"

    losing = ready_session()
    start_transaction(losing, "a@remote.test", "b@remote.test")
    losing.receive(before)
    if dot_sent:
        sent_bytes(losing)
    losing.abort("connection lost")
    assert losing.closed
    assert losing.result is not None
    assert losing.result.connection_lost
    assert losing.result.dot_sent is dot_sent
    first = losing.result.outcomes[0]
    assert isinstance(first, Deferred)
    assert ("may get it twice" in first.reply.text) is dot_sent
    if b"354" in before:
        assert isinstance(losing.result.outcomes[1], Failed)  # an earlier outcome is kept


@pytest.mark.parametrize("answer", [b"554 5.7.1 spam\r\n", b"452 x\r\n", b"421 x\r\n"])
@pytest.mark.parametrize("protocol", list(RelayProtocol))
def test_reply_to_content_of_which_nothing_was_sent_defers(answer: bytes, protocol: RelayProtocol) -> None:
    """It is not about the content, and another exchanger may be asked."""
    session = ready_session(FULL, protocol)
    start_transaction(session, "a@remote.test", "b@remote.test")
    session.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n" + answer)
    assert sent_bytes(session) == b""
    assert outcome_names(session) == ["Deferred", "Deferred"]
    assert session.closed
    assert session.result is not None
    assert session.result.open == (0, 1)


@pytest.mark.parametrize("in_one_packet", [True, False])
def test_lmtp_421_to_the_final_dot_is_the_reply_of_one_recipient(in_one_packet: bool) -> None:
    """RFC 2033 section 4.2: the replies of the other recipients follow."""
    session = ready_session(FULL, RelayProtocol.LMTP)
    start_transaction(session, "a@remote.test", "b@remote.test", "c@remote.test")
    session.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    sent_bytes(session)
    replies = [b"421 4.3.2 a\r\n", b"250 2.0.0 b\r\n", b"550 5.2.1 c\r\n"]
    for packet in [b"".join(replies)] if in_one_packet else replies:
        session.receive(packet)
    assert reply_codes(session) == ["421 4.3.2", "250 2.0.0", "550 5.2.1"]
    assert session.closed  # the server closes the connection
    assert session.result is not None
    assert session.result.open == (0,)
    assert session.result.connection_lost
    assert session.result.dot_sent


def test_lmtp_recipients_without_a_reply_after_421_are_unknown() -> None:
    """RFC 1047: the server may have accepted the message for them, so no other one is asked."""
    session = ready_session(FULL, RelayProtocol.LMTP)
    start_transaction(session, "a@remote.test", "b@remote.test")
    session.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    sent_bytes(session)
    session.receive(b"421 4.3.2 a\r\n")
    assert not session.closed
    session.abort("connection lost")
    assert outcome_names(session) == ["Deferred", "Deferred"]
    assert session.result is not None
    assert session.result.open == (0,)
    assert "may get it twice" in session.result.outcomes[1].reply.text


@pytest.mark.parametrize("protocol", list(RelayProtocol))
def test_reply_before_a_malformed_one_counts(protocol: RelayProtocol) -> None:
    session = ready_session(FULL, protocol)
    start_transaction(session)
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    sent_bytes(session)
    session.receive(b"250 2.0.0 taken\r\nrubbish\r\n")
    assert outcome_names(session) == ["Delivered"]
    assert session.closed


def test_connection_lost_while_content_is_sent_is_reported_as_such() -> None:
    """Until the driver has written the final dot, the server cannot have the message."""
    session = ready_session()
    start_transaction(session)
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert session.to_send()
    session.abort("connection lost")
    assert session.result is not None
    assert not session.result.dot_sent
    text = session.result.outcomes[0].reply.text
    assert text == "remote.test[192.0.2.1]:25: connection lost (while sending the content)"


@pytest.mark.parametrize(
    "answers", [b"554 5.7.1 go away\r\n", b"421 busy\r\n", b"220 hi\r\n450 no\r\n", b"220 hi\r\n500 a\r\n550 b\r\n"]
)
def test_refused_handshake_defers(answers: bytes) -> None:
    session = ClientSession("us.test", "remote")
    session.receive(answers)
    assert session.closed
    assert session.failure is not None
    assert session.failure.reply.is_temporary


@pytest.mark.parametrize("garbage", [b"hello\r\n", b"99 x\r\n", b"250x\r\n", b"100 wait\r\n", b"\r\n", b"999 x\r\n"])
def test_malformed_reply_defers(garbage: bytes) -> None:
    session = ready_session()
    start_transaction(session)
    session.receive(garbage)
    assert session.closed
    assert outcome_names(session) == ["Deferred"]


@pytest.mark.parametrize("wrong", [b"354 go\r\n", b"250 ok\r\n250 ok\r\n250 go\r\n", b"250 ok\r\n334 a\r\n"])
def test_unexpected_reply_code_defers(wrong: bytes) -> None:
    session = ready_session()
    start_transaction(session)
    session.receive(wrong)
    assert session.closed
    assert outcome_names(session) == ["Deferred"]


@pytest.mark.parametrize("extra", [b"550 x\r\n", b"450 x\r\n", b"250 x\r\n", b"421 x\r\n"])
def test_reply_before_its_command_was_sent_defers(extra: bytes) -> None:
    """At each command without PIPELINING: no recipient fails by a reply to a command that was not sent."""
    answers = [b"250 ok\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"]
    for number in range(3):
        session = ready_session(BARE)
        start_transaction(session, "a@remote.test", "b@remote.test")
        for answer in answers[:number]:
            session.receive(answer)
            sent_bytes(session)
        session.receive(answers[number] + extra)
        assert outcome_names(session) == ["Deferred", "Deferred"]
        assert session.closed
        assert session.result is not None
        assert session.result.open == (0, 1)


def test_reply_before_ehlo_was_sent_ends_the_handshake() -> None:
    session = ClientSession("us.test", "remote")
    session.receive(b"220 hi\r\n250 PIPELINING\r\n")
    assert session.closed
    assert session.failure is not None
    assert "replied before the command was sent" in session.failure.reply.text


@pytest.mark.parametrize(
    "answers",
    [
        b"250 ok\r\n550 x\r\n250 ok\r\n250 ok\r\n354 go\r\n",  # one too many after MAIL
        b"250 ok\r\n250 ok\r\n550 x\r\n250 ok\r\n354 go\r\n",
        b"250 ok\r\n550 x\r\n450 a\r\n450 b\r\n554 none\r\n",  # the last one arrives after the transaction
        b"250 ok\r\n550 x\r\nrubbish\r\n",
    ],
)
def test_recipient_does_not_fail_if_the_replies_are_out_of_step(answers: bytes) -> None:
    session = ready_session()
    start_transaction(session, "a@remote.test", "b@remote.test")
    session.receive(answers)
    assert outcome_names(session) == ["Deferred", "Deferred"]
    assert session.closed


def test_closing_after_a_refusal_keeps_the_refusal() -> None:
    session = ready_session()
    start_transaction(session)
    session.receive(b"250 ok\r\n550 5.1.1 no\r\n554 none\r\n421 closing\r\n")
    assert reply_codes(session) == ["550 5.1.1"]
    assert session.closed


def test_many_pipelined_recipients_are_sent_in_groups() -> None:
    """RFC 2920 section 3.1: the client may not rely on unlimited buffers."""
    names = [f"{'x' * 60}{number}@remote.test" for number in range(1000)]
    session = ready_session()
    first = start_transaction(session, *names)
    assert first.startswith(b"MAIL")
    sent, replied = first, 0
    while not sent.endswith(b"DATA\r\n"):
        count = sent.count(b"\r\n") - replied
        replied += count
        session.receive(b"250 ok\r\n" * count)
        group = sent_bytes(session)
        assert group
        assert len(group) < 33_000
        sent += group
    assert sent.count(b"RCPT") == 1000
    session.receive(b"250 ok\r\n" * (sent.count(b"\r\n") - replied - 1) + b"354 go\r\n")
    sent_bytes(session)
    session.receive(b"250 ok\r\n")
    assert outcome_names(session) == ["Delivered"] * 1000


def test_unsolicited_reply_ends_an_idle_connection() -> None:
    session = ready_session()
    session.receive(b"421 4.4.2 idle\r\n")
    assert session.closed


@given(st.binary(max_size=300), st.integers(1, 20))
def test_no_bytes_break_the_session(data: bytes, step: int) -> None:
    session = ready_session()
    start_transaction(session, "a@remote.test", "b@remote.test")
    for start in range(0, len(data), step):
        session.receive(data[start : start + step])
    session.abort("connection lost")
    assert session.result is not None
    assert len(session.result.outcomes) == 2


_LINES = st.sampled_from(
    [b"250 ok", b"250-more", b"354 go", b"450 4.2.0 a", b"550 5.1.1 b", b"421 c", b"452 d", b"503 e"]
)


@given(st.lists(_LINES, max_size=12), st.sampled_from([FULL, BARE]), st.sampled_from(list(RelayProtocol)))
def test_every_reply_sequence_gives_each_recipient_one_outcome(
    lines: list[bytes], ehlo: bytes, protocol: RelayProtocol
) -> None:
    """No recipient is delivered unless the content was sent."""
    own_envelope = envelope("a@remote.test", "b@remote.test", "c@remote.test")
    session = ready_session(ehlo, protocol)
    session.start_transaction(own_envelope, HELLO)
    sent = sent_bytes(session)
    for line in lines:
        session.receive(line + b"\r\n")
        sent += sent_bytes(session)
        if session.result is not None:
            break
    session.abort("connection lost")
    assert session.result is not None
    outcomes = session.result.outcomes
    assert [outcome.recipient for outcome in outcomes] == [recipient.address for recipient in own_envelope.recipients]
    if any(isinstance(outcome, Delivered) for outcome in outcomes):
        assert HELLO + b".\r\n" in sent
    for outcome in outcomes:
        if isinstance(outcome, Deferred):
            assert outcome.reply.is_temporary
        elif isinstance(outcome, Failed):
            assert outcome.reply.is_permanent
