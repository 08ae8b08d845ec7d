"""The session without a socket: octets through the framer, actions out, results back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress import replies
from ingress import session as actions
from ingress.access_policy import QueryMx
from ingress.esmtp import VERBS
from ingress.session import SessionEnd
from tests.support.clients.session_driver import SessionDriver

DIALOGUE = (
    b"EHLO client.test\r\nNOOP\nNOOP\rNOOP\r\n" + b"x" * 700 + b"\r\n"
    b"MAIL FROM:<> SIZE=10\r\nRCPT TO:<nobody@example.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n"
    b"Subject: 1\r\n\r\n..dot\n.\n\r.\r\n.\r\n"
    b"MAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n" + b"y" * 450 + b"\r\n.\r\n"
    b"MAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n.\r\nBDAT 3 LAST\r\nQUIT\r\nNOOP\r\n"
)
CODES = "220 250 500 500 500 250 550 250 354 250 250 250 354 552 250 250 354 250 502 221"
CONTENTS = [b"Subject: 1\r\n\r\n.dot\r\n\r\n .\r\n", b""]


def codes(sent: bytes) -> list[str]:
    return [line[:3].decode() for line in sent.split(b"\r\n") if line[3:4] == b" "]


def test_dialogue_is_the_same_for_every_cut_and_octet_by_octet() -> None:
    whole = SessionDriver()
    whole.send(DIALOGUE)
    assert (codes(whole.sent), whole.contents) == (CODES.split(), CONTENTS)
    assert whole.end is SessionEnd.QUIT
    single = SessionDriver()
    for octet in DIALOGUE:
        single.send(bytes((octet,)))
    assert (single.sent, single.executed) == (whole.sent, whole.executed)
    for cut in range(len(DIALOGUE)):
        client = SessionDriver()
        client.send(DIALOGUE[:cut])
        assert whole.sent.startswith(client.sent)
        client.send(DIALOGUE[cut:])
        assert (client.sent, client.contents, client.end) == (whole.sent, whole.contents, whole.end), cut


LINES = [b"EHLO x\r\n", b"MAIL FROM:<>\r\n", b"RCPT TO:<bob@example.test>\r\n", b"DATA\r\n", b".\r\n", b"RSET\r\n"]
PIECES = st.sampled_from([*LINES, b"QUIT\r\n", b"\r\n", b"\n", b"\r", b".", b"NOOP", b"\xff", b"z" * 600])


@given(st.lists(PIECES, max_size=25).map(b"".join), st.lists(st.integers(0, 1000), max_size=6))
def test_any_input_gives_the_same_actions_for_any_packets(wire: bytes, cuts: list[int]) -> None:
    whole, parts = SessionDriver(), SessionDriver()
    whole.send(wire)
    at = 0
    for cut in [*sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]:
        parts.send(wire[at:cut])
        at = cut
    assert parts.executed == whole.executed
    assert parts.contents == whole.contents


TO_STATE = {
    "START": [],
    "READY": ["EHLO x"],
    "MAIL": ["EHLO x", "MAIL FROM:<>"],
    "REFUSED": ["EHLO x", "MAIL FROM:<>", "RCPT TO:<nobody@example.test>"],
    "RCPT": ["EHLO x", "MAIL FROM:<>", "RCPT TO:<bob@example.test>", "RCPT TO:<nobody@example.test>"],
}
COMMANDS = {"MAIL": "MAIL FROM:<>", "RCPT": "RCPT TO:<bob@example.test>", "EHLO": "EHLO x", "HELO": "HELO x"}
# In the order START, READY, MAIL, REFUSED, RCPT; all other commands have the same reply in every state.
BY_STATE = {
    "MAIL": ["503 5.5.1 Send", "250", "503 5.5.1 Nested", "503 5.5.1 Nested", "503 5.5.1 Nested"],
    "RCPT": ["503 5.5.1 Send EHLO", "503 5.5.1 Send MAIL", "250", "250", "250"],
    "DATA": ["503 5.5.1 Send EHLO", "503 5.5.1 Send MAIL", "503 5.5.1 Send RCPT", "554 5.5.1 No valid", "354"],
}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_state_allows_the_commands_of_the_table(verb: str) -> None:
    received = []
    for lines in TO_STATE.values():
        client = SessionDriver()
        for line in lines:
            client.command(line)
        received.append(client.command(COMMANDS.get(verb, verb)))
    expected = BY_STATE.get(verb, [received[0]] * len(TO_STATE))
    assert [reply[: len(start)] for reply, start in zip(received, expected, strict=True)] == expected
    assert not received[0].startswith("502") or verb == "EXPN"


def test_sender_is_checked_after_the_capacity_and_by_dns() -> None:
    client = SessionDriver()
    client.command("EHLO x")
    client.executed.clear()
    client.command("MAIL FROM:<a@remote.test> SIZE=20")
    assert client.executed == [actions.CheckCapacity(20, at_mail=True), QueryMx("remote.test"), replies.SENDER_OK]
    client = SessionDriver(results={QueryMx: replies.SENDER_DOMAIN_NOT_FOUND})
    client.command("EHLO x")
    assert client.command("MAIL FROM:<a@remote.test>").startswith("550 5.1.8")
    assert client.command("MAIL FROM:<>").startswith("250")


def test_421_at_mail_ends_the_session() -> None:
    client = SessionDriver(results={actions.CheckCapacity: replies.SERVICE_NOT_AVAILABLE})
    client.command("EHLO x")
    client.executed.clear()
    assert client.command("MAIL FROM:<>").startswith("421")
    refused = actions.Refused(replies.SERVICE_NOT_AVAILABLE, {"sender": "<>", "helo": "x"}, counted=True)
    assert client.executed[1:] == [refused, actions.Close(SessionEnd.REJECTED)]


def test_refused_content_keeps_its_log_fields_and_resets_the_transaction() -> None:
    fields = {"queue_id": "Q", "sender": "<>"}
    client = SessionDriver(results={actions.Accept: (replies.NOT_CONFIRMED, fields)})
    for line in (*TO_STATE["RCPT"], "DATA"):
        client.command(line)
    assert client.command(".").startswith("451 4.3.0")
    assert client.executed[-1] == actions.Refused(replies.NOT_CONFIRMED, {**fields, "helo": "x"}, counted=True)
    assert client.session.verb == "CONTENT"
    assert client.command("RCPT TO:<bob@example.test>").startswith("503 5.5.1 Send MAIL")


@pytest.mark.parametrize("in_data", [False, True])
def test_internal_error_resets_the_transaction_and_closes_in_data(in_data: bool) -> None:
    client = SessionDriver()
    for line in TO_STATE["RCPT"]:
        client.command(line)
    last = list(client.session.recover(in_data=in_data))
    closing = [replies.LOCAL_ERROR_CLOSING, actions.Close(SessionEnd.INTERNAL_ERROR)]
    assert last == (closing if in_data else [replies.LOCAL_ERROR])
    assert client.command("DATA").startswith("503 5.5.1 Send MAIL")


def test_too_many_errors_or_non_mail_commands_end_the_session() -> None:
    client = SessionDriver(max_errors=3)
    assert codes(client.send(b"FROB\r\n" * 3)) == ["500", "500", "500", "421"]
    assert client.end is SessionEnd.TOO_MANY_ERRORS
    client = SessionDriver(max_errors=3)
    assert codes(client.send(b"NOOP\r\n" * 200)) == ["250"] * 103 + ["421"]
