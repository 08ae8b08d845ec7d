"""The POP3 session against a model of RFC 1939: states, deletion marks, and what QUIT removes."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mailstore.mailboxes import StoredMessage
from mailstore.pop3.session import MAX_ERRORS, MAX_LOGIN_FAILURES, LoginFailure, Session, Update
from tests.support.clients.pop3_driver import Pop3Driver

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NUMBERS = st.integers(0, 5)


class Pop3Session(RuleBasedStateMachine):
    end: str | None = "before the first session"

    @precondition(lambda self: self.end is not None)
    @rule(sizes=st.lists(st.integers(0, 10_000), max_size=4), seen=st.integers(0, 15))
    def connect(self, sizes: list[int], seen: int) -> None:
        self.messages = [
            StoredMessage(f"{number}-0", size, NOON, seen=bool(seen >> number & 1)) for number, size in enumerate(sizes)
        ]
        self.driver = Pop3Driver(Session(clear_text_allowed=True), messages=self.messages)
        self.named = self.logged_in = False
        self.failures = self.errors = 0
        self.end = None
        self.deleted: set[int] = set()
        self.retrieved: set[int] = set()

    def ask(self, line: bytes, *, ok: bool, is_error: bool = False) -> bytes:
        """`is_error`: a wrong command, of which the session permits some."""
        self.errors += is_error
        if self.errors >= MAX_ERRORS:
            self.end = "too_many_errors"
        answer = self.driver.send(line)
        assert answer.startswith(b"+OK" if ok else b"-ERR"), (line, answer)
        return answer

    def remaining(self) -> list[tuple[int, StoredMessage]]:
        return [(n, message) for n, message in enumerate(self.messages, 1) if n not in self.deleted]

    def exists(self, number: int) -> bool:
        return 1 <= number <= len(self.messages) and number not in self.deleted

    alive = precondition(lambda self: self.end is None)
    transaction = precondition(lambda self: self.end is None and self.logged_in)

    @alive
    @rule()
    def user(self) -> None:
        self.ask(b"USER alice@example.test", ok=not self.logged_in)
        self.named = not self.logged_in

    @alive
    @rule(failure=st.sampled_from([None, None, *LoginFailure]))
    def password(self, failure: LoginFailure | None) -> None:
        if self.logged_in or not self.named:
            self.ask(b"PASS secret", ok=False, is_error=not self.logged_in)
            return
        self.named = False
        self.driver.failure = failure
        self.failures += failure is LoginFailure.INVALID_CREDENTIALS
        if self.failures >= MAX_LOGIN_FAILURES:
            self.end = "auth_failed"
        self.ask(b"PASS secret", ok=failure is None)
        self.logged_in = failure is None

    @precondition(lambda self: self.end is None and not self.logged_in)
    @rule()
    def log_in(self) -> None:
        self.user()
        self.password(None)

    @transaction
    @rule()
    def stat(self) -> None:
        left = [message for _, message in self.remaining()]
        total = sum(message.size_bytes for message in left)
        assert self.ask(b"STAT", ok=True) == b"+OK %d %d\r\n" % (len(left), total)

    @transaction
    @rule()
    def listings(self) -> None:
        sizes = b"".join(b"%d %d\r\n" % (n, message.size_bytes) for n, message in self.remaining())
        uids = b"".join(b"%d %b\r\n" % (n, message.uid.encode()) for n, message in self.remaining())
        assert self.ask(b"LIST", ok=True) == b"+OK\r\n" + sizes + b".\r\n"
        assert self.ask(b"UIDL", ok=True) == b"+OK\r\n" + uids + b".\r\n"

    @transaction
    @rule(number=NUMBERS, command=st.sampled_from([b"LIST %d", b"UIDL %d", b"TOP %d 3"]))
    def one(self, number: int, command: bytes) -> None:
        if self.exists(number) and command.startswith(b"TOP"):
            self.driver.send(command % number)
        else:
            self.ask(command % number, ok=self.exists(number))

    @transaction
    @rule(number=NUMBERS)
    def retr(self, number: int) -> None:
        sent = len(self.driver.actions)
        if self.exists(number):
            self.driver.send(b"RETR %d" % number)
            self.retrieved.add(number)
        else:
            self.ask(b"RETR %d" % number, ok=False)
        assert len(self.driver.actions) == sent + self.exists(number)

    @transaction
    @rule(number=NUMBERS)
    def dele(self, number: int) -> None:
        self.ask(b"DELE %d" % number, ok=self.exists(number))
        if self.exists(number):
            self.deleted.add(number)

    @transaction
    @rule()
    def rset(self) -> None:
        self.ask(b"RSET", ok=True)
        self.deleted.clear()

    @alive
    @rule(line=st.sampled_from([b"FROB", b"", b"RETR x", b"STAT 1", b"DELE", b"APOP a b"]))
    def wrong(self, line: bytes) -> None:
        self.ask(line, ok=False, is_error=True)

    @precondition(lambda self: self.end is None and not self.logged_in)
    @rule(line=st.sampled_from([b"STAT", b"LIST", b"RETR 1", b"DELE 1", b"RSET", b"NOOP"]))
    def before_login(self, line: bytes) -> None:
        self.ask(line, ok=False, is_error=True)

    @alive
    @rule()
    def quit(self) -> None:
        self.ask(b"QUIT", ok=True)
        self.end = "quit"
        updates = [action for action in self.driver.actions if isinstance(action, Update)]
        if not self.logged_in:  # RFC 1939 section 4: no UPDATE state without a login
            assert updates == []
            return
        expunged = tuple(self.messages[n - 1].uid for n in sorted(self.deleted))
        read = tuple(
            self.messages[n - 1].uid for n in sorted(self.retrieved - self.deleted) if not self.messages[n - 1].seen
        )
        assert updates == [Update(expunged, read)]

    @invariant()
    def nothing_is_removed_before_quit(self) -> None:
        if hasattr(self, "driver"):
            assert self.driver.end == self.end
            assert self.end == "quit" or not any(isinstance(action, Update) for action in self.driver.actions)


TestPop3Session = Pop3Session.TestCase
TestPop3Session.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
