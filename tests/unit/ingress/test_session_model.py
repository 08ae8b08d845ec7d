"""The SMTP session against a model: random commands in every state get the code that the model predicts."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ingress import session as actions
from ingress.session import SessionEnd
from mail.address import path_text
from tests.support.clients.session_driver import SessionDriver

ERRORS_MAX, RECIPIENTS_MAX, SIZE_MAX = 5, 2, 100
HELLO_NAMES = st.sampled_from([b"client.test", b"[192.0.2.1]", b"x_y"])
SENDERS = st.sampled_from(["", "a@far.test", "b@far.test"])
WRONG = st.sampled_from([b"FROB", b"", b"AUTH PLAIN", b"NOOP\n", b"DATA now", b"x" * 700, b"\xff", b"MAIL FROM:x"])
KNOWN = st.sampled_from(["alice@example.test", "bob@example.test", "postmaster@example.test"])
UNKNOWN = st.sampled_from(["nobody@example.test", "round@example.test", "somebody@elsewhere.test"])


class SmtpSession(RuleBasedStateMachine):
    """The model: what RFC 5321 section 4.1.4 says about the order of commands, and the limits of the policy."""

    def __init__(self) -> None:
        super().__init__()
        self.connect()

    @precondition(lambda self: self.ended)
    @rule()
    def connect(self) -> None:
        self.driver = SessionDriver(
            max_errors=ERRORS_MAX, max_recipients=RECIPIENTS_MAX, max_size=SIZE_MAX, sender_must_resolve=False
        )
        self.hello = False
        self.sender: str | None = None  # of a transaction
        self.recipients: list[str] = []
        self.refused_recipients = 0
        self.errors = 0
        self.ended = False
        self.accepted: list[tuple[str, list[str], bytes]] = []

    def send(self, data: bytes, *codes: int) -> None:
        """The replies to `data` are those with `codes`; one more ends the session after too many errors."""
        replies = self.driver.send(data)
        self.errors += codes[-1] >= 500
        expected = list(codes)
        if self.errors >= ERRORS_MAX and not self.ended:
            expected.append(421)
            self.ended = True
        assert [int(line[:3]) for line in replies.splitlines() if line[3:4] == b" "] == expected, replies

    def reset(self) -> None:
        self.sender, self.recipients, self.refused_recipients = None, [], 0

    alive = precondition(lambda self: not self.ended)

    @alive
    @rule(
        verb=st.sampled_from([b"EHLO", b"HELO", b"ehlo"]),
        name=HELLO_NAMES,
    )
    def greet(self, verb: bytes, name: bytes) -> None:
        self.send(b"%b %b\r\n" % (verb, name), 250)
        self.hello = True
        self.reset()

    @alive
    @rule(
        sender=st.sampled_from(["", "a@far.test", "b@far.test"]),
        size=st.sampled_from([None, 1, SIZE_MAX, SIZE_MAX + 1]),
    )
    def mail(self, sender: str, size: int | None) -> None:
        line = f"MAIL FROM:<{sender}>" + ("" if size is None else f" SIZE={size}")
        if not self.hello or self.sender is not None:
            code = 503
        elif size is not None and not self.driver.session._extended:
            code = 555
        else:
            code = 552 if size is not None and size > SIZE_MAX else 250
        self.send(line.encode() + b"\r\n", code)
        if code == 250:
            self.sender = sender

    @alive
    @rule(recipient=KNOWN)
    def rcpt(self, recipient: str) -> None:
        if self.sender is None:
            code = 503
        elif recipient not in self.recipients and len(self.recipients) >= RECIPIENTS_MAX:
            code = 452
        else:
            code = 250
        self.send(f"RCPT TO:<{recipient}>\r\n".encode(), code)
        if code == 250 and recipient not in self.recipients:
            self.recipients.append(recipient)
        self.refused_recipients += code == 452

    @alive
    @rule(recipient=UNKNOWN)
    def rcpt_refused(self, recipient: str) -> None:
        if self.sender is None:
            self.send(f"RCPT TO:<{recipient}>\r\n".encode(), 503)
            return
        replies = self.driver.send(f"RCPT TO:<{recipient}>\r\n".encode())
        code = int(replies[:3])
        assert code in (450, 451, 550, 554), replies
        self.refused_recipients += 1
        self.errors += code >= 500
        if self.errors >= ERRORS_MAX:
            assert b"\r\n421 " in replies
            self.ended = True

    @alive
    @rule(lines=st.lists(st.sampled_from([b"a", b".", b"..", b"", b"QUIT", b"x" * 40]), max_size=4))
    def data(self, lines: list[bytes]) -> None:
        if self.sender is None:
            self.send(b"DATA\r\n", 503)
            return
        if not self.recipients:
            self.send(b"DATA\r\n", 554 if self.refused_recipients else 503)
            return
        content = b"".join(line + b"\r\n" for line in lines)
        stuffed = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)
        is_large = len(stuffed) > SIZE_MAX
        assert self.driver.send(b"DATA\r\n").startswith(b"354 ")
        self.send(stuffed + b".\r\n", 552 if is_large else 250)
        if not is_large:
            self.accepted.append((self.sender, self.recipients, content))
            self.errors = 0  # an accepted message clears the count
        self.reset()

    @alive
    @rule(sender=SENDERS, recipient=KNOWN)
    def message(self, sender: str, recipient: str) -> None:
        """A whole transaction."""
        self.greet(b"EHLO", b"client.test")
        self.mail(sender, None)
        self.rcpt(recipient)
        self.data([b"a"])

    @alive
    @rule()
    def rset(self) -> None:
        self.send(b"RSET\r\n", 250)
        self.reset()

    @alive
    @rule(
        line=st.sampled_from([b"FROB", b"", b"AUTH PLAIN", b"NOOP\n", b"DATA now", b"x" * 700, b"\xff", b"MAIL FROM:x"])
    )
    def wrong(self, line: bytes) -> None:
        replies = self.driver.send(line + b"\r\n")
        codes = [int(reply[:3]) for reply in replies.splitlines()]
        assert all(500 <= code <= 503 for code in codes if code != 421), replies
        self.errors += sum(code >= 500 for code in codes)
        self.ended = self.errors >= ERRORS_MAX
        assert (codes[-1] == 421) is self.ended

    @alive
    @rule()
    def quit(self) -> None:
        self.send(b"QUIT\r\n", 221)
        self.ended = True

    @invariant()
    def what_was_accepted_is_what_was_sent(self) -> None:
        stored = [action for action in self.driver.executed if isinstance(action, actions.Accept)]
        envelopes = [
            (path_text(action.mail.reverse_path).strip("<>"), [str(each.address) for each in action.recipients])
            for action in stored
        ]
        assert envelopes == [(sender, recipients) for sender, recipients, _ in self.accepted]
        assert self.driver.contents == [content for *_, content in self.accepted]

    @invariant()
    def the_session_ends_when_the_model_does(self) -> None:
        assert (self.driver.end is not None) is self.ended
        assert self.driver.end in (None, SessionEnd.QUIT, SessionEnd.TOO_MANY_ERRORS)
        if self.ended:
            assert self.driver.send(b"NOOP\r\n") == b""


TestSmtpSession = SmtpSession.TestCase
TestSmtpSession.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
