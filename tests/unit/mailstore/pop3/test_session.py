"""POP3 session, command parser and transfer encoding, without sockets."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstore.mailboxes import StoredMessage
from mailstore.pop3 import command as commands
from mailstore.pop3.command import LineReader, LineTooLong, parse
from mailstore.pop3.session import Close, LogIn, LoginFailure, Send, SendMessage, Session, Update
from mailstore.pop3.transfer import MultiLineResponse
from tests.support.clients.pop3_driver import MESSAGES, NOW, Pop3Driver


@pytest.fixture
def logged_in_driver() -> Pop3Driver:
    driver = Pop3Driver()
    driver.send(b"USER alice@example.test")
    assert driver.send(b"PASS secret") == b"+OK 3 messages (350 octets)\r\n"
    driver.actions.clear()
    return driver


def test_a_whole_session(logged_in_driver: Pop3Driver) -> None:
    assert logged_in_driver.send(b"STAT") == b"+OK 3 350\r\n"
    assert logged_in_driver.send(b"LIST") == b"+OK\r\n1 120\r\n2 200\r\n3 30\r\n.\r\n"
    assert logged_in_driver.send(b"uidl") == b"+OK\r\n1 A-0\r\n2 B-0\r\n3 C-0\r\n.\r\n"
    assert logged_in_driver.send(b"LIST 2") == b"+OK 2 200\r\n"
    assert logged_in_driver.send(b"UIDL 3") == b"+OK 3 C-0\r\n"
    assert logged_in_driver.send(b"NOOP") == b"+OK\r\n"
    logged_in_driver.send(b"RETR 1")
    logged_in_driver.send(b"TOP 3 10")
    logged_in_driver.send(b"TOP 3 2147483647")  # "all lines" to some clients
    assert logged_in_driver.actions == [
        SendMessage(1, "A-0", 120), SendMessage(3, "C-0", 30, 10), SendMessage(3, "C-0", 30, 2147483647),
    ]  # fmt: skip
    assert logged_in_driver.send(b"DELE 2").startswith(b"+OK")
    assert logged_in_driver.send(b"DELE 2").startswith(b"-ERR")
    assert logged_in_driver.send(b"RETR 2").startswith(b"-ERR")
    assert logged_in_driver.send(b"LIST 2").startswith(b"-ERR")
    assert logged_in_driver.send(b"STAT") == b"+OK 2 150\r\n"
    assert logged_in_driver.send(b"LIST") == b"+OK\r\n1 120\r\n3 30\r\n.\r\n"  # numbers do not change
    assert logged_in_driver.send(b"QUIT") == b"+OK bye\r\n"
    assert logged_in_driver.actions[-1] == Update(("B-0",), ("A-0",))
    assert logged_in_driver.end == "quit"


def test_rset_clears_deletion_marks(logged_in_driver: Pop3Driver) -> None:
    logged_in_driver.send(b"DELE 1")
    logged_in_driver.send(b"DELE 3")
    assert logged_in_driver.send(b"RSET") == b"+OK 3 messages\r\n"
    assert logged_in_driver.send(b"STAT") == b"+OK 3 350\r\n"
    logged_in_driver.send(b"QUIT")
    assert logged_in_driver.actions == [Update((), ())]


@pytest.mark.parametrize(
    "line", [b"RETR 0", b"RETR 4", b"DELE 99", b"TOP 4 1", b"LIST 0", b"UIDL 4", b"RETR 9999999999"]
)
def test_unknown_message_number_is_an_error(logged_in_driver: Pop3Driver, line: bytes) -> None:
    assert logged_in_driver.send(line) == b"-ERR no such message\r\n"
    assert logged_in_driver.actions == []


@pytest.mark.parametrize(
    "line",
    [
        b"", b" ", b"FROB", b"RETR", b"RETR x", b"RETR -1", b"RETR 1 2", b"RETR 1e3", b"RETR 1" + b"0" * 20, b"TOP 1",
        b"TOP 1 -1", b"TOP x 1", b"LIST x", b"LIST 1 2", b"DELE", b"STAT 1", b"QUIT now", b"NOOP x", b"\x00\xff",
        b"APOP alice 0123", b"STLS", "RETR ٣".encode(), b"RETR\t1",
    ],
)  # fmt: skip
def test_invalid_command_is_an_error(logged_in_driver: Pop3Driver, line: bytes) -> None:
    reply = logged_in_driver.send(line)
    assert reply.startswith(b"-ERR ")
    assert reply.count(b"\r\n") == 1
    assert logged_in_driver.actions == []


@pytest.mark.parametrize("line", [b"STAT", b"LIST", b"RETR 1", b"DELE 1", b"NOOP", b"RSET", b"TOP 1 1", b"UIDL"])
def test_mailbox_commands_need_a_login(line: bytes) -> None:
    driver = Pop3Driver()
    assert driver.send(line).startswith(b"-ERR")
    assert driver.actions == []


@pytest.mark.parametrize("line", [b"USER bob", b"PASS x", b"AUTH PLAIN AGEAYg=="])
def test_second_login_is_refused(logged_in_driver: Pop3Driver, line: bytes) -> None:
    assert logged_in_driver.send(line) == b"-ERR command not valid in this state\r\n"
    assert logged_in_driver.actions == []


def test_pass_needs_user_and_uses_the_whole_line() -> None:
    driver = Pop3Driver(denied=LoginFailure.INVALID_CREDENTIALS)
    assert driver.send(b"PASS x") == b"-ERR send USER first\r\n"
    driver.send(b"USER alice")
    driver.send("PASS  two  blanks, ü ".encode())
    assert driver.actions == [LogIn("alice", " two  blanks, ü ")]
    assert driver.send(b"PASS x") == b"-ERR send USER first\r\n"  # a wrong password clears the user name


def test_three_wrong_passwords_end_the_session_and_other_failures_do_not() -> None:
    driver = Pop3Driver(denied=LoginFailure.INVALID_CREDENTIALS)
    answers = []
    for _ in range(3):
        driver.send(b"USER alice")
        answers.append(driver.send(b"PASS wrong"))
    assert answers == [b"-ERR [AUTH] wrong user or password\r\n"] * 3
    assert driver.end == "auth_failed"
    for denied, code in ((LoginFailure.UNAVAILABLE, b"-ERR [SYS/TEMP]"), (LoginFailure.IN_USE, b"-ERR [IN-USE]")):
        driver = Pop3Driver(denied=denied)
        for _ in range(5):
            driver.send(b"USER alice")
            assert driver.send(b"PASS right").startswith(code)
        assert driver.end is None


def test_password_is_refused_without_clear_text_allowed() -> None:
    driver = Pop3Driver(Session(clear_text_allowed=False))
    for line in (b"USER alice", b"PASS secret", b"AUTH PLAIN AGEAYg==", b"AUTH PLAIN"):
        assert driver.send(line).startswith(b"-ERR [AUTH] "), line
    capabilities = driver.send(b"CAPA")
    assert b"USER" not in capabilities
    assert b"SASL" not in capabilities
    assert driver.send(b"AUTH") == b"+OK\r\n.\r\n"
    assert driver.actions == []


def test_capabilities() -> None:
    lines = Pop3Driver().send(b"CAPA").split(b"\r\n")
    assert lines[0].startswith(b"+OK")
    assert lines[-2:] == [b".", b""]
    assert set(lines[1:-2]) == {
        b"USER", b"SASL PLAIN", b"TOP", b"UIDL", b"PIPELINING", b"RESP-CODES", b"AUTH-RESP-CODE", b"EXPIRE NEVER",
        b"IMPLEMENTATION eilpost",
    }  # fmt: skip


def b64(identity: bytes, login: bytes, password: bytes) -> bytes:
    return base64.b64encode(b"\0".join((identity, login, password)))


def test_sasl_plain() -> None:
    for first in (b"AUTH PLAIN " + b64(b"", b"alice", b"s p"), b"auth plain " + b64(b"alice", b"alice", b"s p")):
        driver = Pop3Driver()
        assert driver.send(first).startswith(b"+OK 3")
        assert driver.actions == [LogIn("alice", "s p")]
    driver = Pop3Driver()
    assert driver.send(b"AUTH PLAIN") == b"+ \r\n"
    assert driver.session.line_limit > 1000
    assert driver.send(b64(b"", b"alice", b"x" * 500)).startswith(b"+OK 3")
    driver = Pop3Driver()
    for response in (
        b"*",
        b"",
        b"!!!",
        b"AAAA",
        base64.b64encode(b"\0a\0b\0c"),
        b64(b"root", b"alice", b"x"),
        LineTooLong(),
    ):
        assert driver.send(b"AUTH PLAIN") == b"+ \r\n"
        assert driver.send(response).startswith(b"-ERR"), response
    assert driver.send(b"AUTH CRAM-MD5").startswith(b"-ERR")
    assert driver.send(b"AUTH PLAIN =").startswith(b"-ERR")
    assert driver.actions == []
    assert driver.send(b"AUTH") == b"+OK\r\nPLAIN\r\n.\r\n"


def test_twenty_errors_end_the_session() -> None:
    driver = Pop3Driver()
    for _ in range(20):
        assert driver.end is None
        driver.send(b"GET / HTTP/1.1")
    assert driver.end == "too_many_errors"


@pytest.mark.parametrize("line", [b"CAPA", b"USER alice", b"AUTH"])
def test_too_many_commands_before_login_end_the_session(line: bytes) -> None:
    for allowed in (True, False):
        driver = Pop3Driver(Session(clear_text_allowed=allowed))
        for _ in range(100):
            driver.send(line)
            assert driver.end is None
        assert driver.send(line) == b"-ERR too many commands before login\r\n"
        assert driver.end == "too_many_errors"


def test_commands_after_login_are_not_limited(logged_in_driver: Pop3Driver) -> None:
    for _ in range(300):
        logged_in_driver.send(b"NOOP")
    assert logged_in_driver.end is None


def test_failed_update_is_reported_at_quit() -> None:
    session = Session(clear_text_allowed=True)
    list(session.logged_in(MESSAGES))
    assert list(session.receive(b"QUIT")) == [
        Update((), ()),
    ]
    assert list(session.updated(done=False)) == [
        Send(b"-ERR [SYS/TEMP] some deleted messages were not removed\r\n"),
        Close("quit"),
    ]


def test_long_listing_is_sent_in_slices() -> None:
    session = Session(clear_text_allowed=True)
    list(session.logged_in([StoredMessage(f"U-{n}", n, NOW) for n in range(1, 20_001)]))
    pieces = [action.data for action in session.receive(b"UIDL") if isinstance(action, Send)]
    assert max(map(len, pieces)) < 32_000
    assert b"".join(pieces) == b"+OK\r\n" + b"".join(b"%d U-%d\r\n" % (n, n) for n in range(1, 20_001)) + b".\r\n"


# Lines


@given(st.binary(max_size=600), st.lists(st.integers(1, 40), max_size=60))
def test_lines_are_the_same_for_any_packets(data: bytes, cuts: list[int]) -> None:
    def read(parts: list[bytes]) -> list[bytes | LineTooLong]:
        lines, lines_read = LineReader(), []
        for part in parts:
            lines.feed(part)
            while (line := lines.next_line()) is not None:
                lines_read.append(line)
        return lines_read

    parts, rest = [], data
    for cut in cuts:
        parts.append(rest[:cut])
        rest = rest[cut:]
    octets = [data[n : n + 1] for n in range(len(data))]
    assert read([data]) == read([*parts, rest]) == read(octets)


def test_line_limit_includes_the_line_ending() -> None:
    lines = LineReader()
    lines.feed(b"x" * 253 + b"\r\n" + b"y" * 254 + b"\r\n" + b"NOOP\r\nQUIT\n")
    assert [lines.next_line() for _ in range(5)] == [b"x" * 253, LineTooLong(), b"NOOP", b"QUIT", None]


def test_unfinished_line_uses_bounded_memory() -> None:
    lines = LineReader()
    for _ in range(100):
        lines.feed(b"z" * 8192)
        assert lines.next_line() is None
        assert len(lines._buffer) <= 8192
    lines.feed(b"tail\r\nNOOP\r\n")
    assert lines.next_line() == LineTooLong()
    assert lines.next_line() == b"NOOP"


def test_commands_parse_to_values() -> None:
    assert parse(b"top 12 0") == commands.Retrieve(12, 0)
    assert parse(b"List") == commands.Listing(uids=False)
    assert parse(b"PASS ") == commands.Malformed("PASS needs a password")
    assert parse(b"RETR  7 ") == commands.Retrieve(7)


# Transfers


def encode(content: bytes, size: int, top_lines: int | None = None) -> bytes:
    transfer = MultiLineResponse(top_lines)
    out = bytearray()
    for start in range(0, len(content), size):
        out += transfer.encode(content[start : start + size])
        if transfer.complete:
            break
    return bytes(out + transfer.terminator())


def unstuff(octets: bytes) -> list[bytes]:
    """Decode as a client does (RFC 1939 section 3)."""
    lines = octets.split(b"\r\n")
    assert lines[-2:] == [b".", b""]
    assert b"." not in lines[:-2]
    return [line[1:] if line.startswith(b".") else line for line in lines[:-2]]


_LINE = st.binary(max_size=12).map(lambda line: line.replace(b"\r", b".").replace(b"\n", b"."))
_CONTENT = st.lists(_LINE, max_size=12).map(lambda lines: b"".join(line + b"\r\n" for line in lines))


@given(_CONTENT, st.integers(1, 20))
def test_transfer_is_decoded_identically_for_any_slices(content: bytes, size: int) -> None:
    octets = encode(content, size)
    assert octets == encode(content, len(content) + 1)
    assert b"".join(line + b"\r\n" for line in unstuff(octets)) == content


@given(_CONTENT, st.integers(1, 20), st.integers(0, 5))
def test_top_sends_the_header_and_n_lines(content: bytes, size: int, count: int) -> None:
    lines = content.split(b"\r\n")[:-1]
    empty = lines.index(b"") + 1 if b"" in lines else len(lines)
    assert unstuff(encode(content, size, count)) == lines[: empty + count]


def test_content_without_final_crlf_gets_one() -> None:
    assert encode(b"a\r\nb", 2) == b"a\r\nb\r\n.\r\n"
    assert encode(b"", 2) == b".\r\n"
