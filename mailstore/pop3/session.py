"""POP3 session state machine (RFC 1939), sans I/O.

`receive` yields actions; the driver executes each before it takes the next, so a long listing is never in memory whole,
and returns results of login, transfer and update through methods. Messages are removed at QUIT only.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from typing import assert_never

from mailstore.mailboxes import StoredMessage
from mailstore.pop3 import command as commands
from mailstore.pop3.command import MAX_COMMAND_BYTES, MAX_RESPONSE_BYTES, Command, Keyword, LineTooLong

MAX_LOGIN_FAILURES = 3
MAX_ERRORS = 20
MAX_UNAUTHENTICATED_COMMANDS = 100  # bounds a session without login: each command restarts the idle time
_LISTING_LINES = 500  # listing lines per action


@dataclass(frozen=True, slots=True)
class Send:
    """Write `data`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class LogIn:
    """Check the password, lock and list the mailbox; then call `logged_in` or `log_in_failed`."""

    login: str
    password: str


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Send a message, or its header and the first `top_lines` lines of its body."""

    number: int
    uid: str
    size_bytes: int
    top_lines: int | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """The UPDATE state (RFC 1939 section 6): remove `expunge`, flag `seen`; then call `updated`."""

    expunge: tuple[str, ...]
    seen: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Flush and close."""

    end: str  # metric label: "quit", "auth_failed", "too_many_errors"


Action = Send | LogIn | SendMessage | Update | Close


class LoginFailure(Enum):
    """Why a login failed."""

    INVALID_CREDENTIALS = auto()
    UNAVAILABLE = auto()
    IN_USE = auto()


class _State(Enum):
    AUTHORIZATION = auto()
    RESPONSE = auto()  # waiting for the SASL response
    TRANSACTION = auto()
    ENDED = auto()


GREETING = Send(b"+OK eilpost POP3 ready\r\n")  # no timestamp: APOP is not offered
SHUTTING_DOWN = Send(b"-ERR [SYS/TEMP] shutting down, try again later\r\n")
TOO_MANY_CONNECTIONS = Send(b"-ERR [SYS/TEMP] too many connections, try again later\r\n")
_CLEAR_TEXT = Send(b"-ERR [AUTH] plain-text passwords are not allowed from this address\r\n")  # RFC 3206 section 5
_WRONG = Send(b"-ERR [AUTH] wrong user or password\r\n")
_UNAVAILABLE = Send(b"-ERR [SYS/TEMP] mailbox not available, try again later\r\n")  # RFC 3206 section 4
_IN_USE = Send(b"-ERR [IN-USE] mailbox is open in another session\r\n")  # RFC 2449 section 8.1.2
_NO_SUCH_MESSAGE = Send(b"-ERR no such message\r\n")
_DELETED = Send(b"-ERR message is marked as deleted\r\n")
_WRONG_STATE = Send(b"-ERR command not valid in this state\r\n")
_OK = Send(b"+OK\r\n")
_END = Send(b".\r\n")


class Session:
    """One session. `clear_text_allowed`: passwords may be sent over this connection."""

    def __init__(self, *, clear_text_allowed: bool) -> None:
        # STLS (RFC 2595), not implemented, would set this to True after the handshake.
        self._clear_text_allowed = clear_text_allowed
        self._state = _State.AUTHORIZATION
        self._login: bytes | None = None
        self._failures = 0
        self._errors = 0
        self._unauthenticated_commands = 0  # lines before login
        self._messages: Sequence[StoredMessage] = ()
        self._deleted: set[int] = set()
        self._retrieved: set[int] = set()

    @property
    def line_limit(self) -> int:
        """Maximum length of the next line in octets, including its line ending."""
        return MAX_RESPONSE_BYTES if self._state is _State.RESPONSE else MAX_COMMAND_BYTES

    def receive(self, line: bytes | LineTooLong) -> Iterator[Action]:
        """Handle a line of the client; yield actions in order."""
        if self._state is not _State.TRANSACTION:
            self._unauthenticated_commands += 1
            if self._unauthenticated_commands > MAX_UNAUTHENTICATED_COMMANDS:
                self._state = _State.ENDED
                yield Send(b"-ERR too many commands before login\r\n")
                yield Close("too_many_errors")
                return
        if isinstance(line, LineTooLong):
            if self._state is _State.RESPONSE:
                self._state = _State.AUTHORIZATION
            yield from self._error("line too long")
        elif self._state is _State.RESPONSE:
            self._state = _State.AUTHORIZATION
            yield from self._sasl_plain(line)
        else:
            yield from self._command(commands.parse(line))

    def _command(self, command: Command) -> Iterator[Action]:
        match command:
            case commands.Malformed(reason):
                yield from self._error(reason)
            case Keyword.CAPA:
                yield self._capabilities()
            case Keyword.QUIT:
                yield from self._quit()
            case commands.User() | commands.Password() | commands.Auth():
                if self._state is _State.AUTHORIZATION:
                    yield from self._authorization(command)
                else:
                    yield _WRONG_STATE
            case _ if self._state is not _State.TRANSACTION:
                yield from self._error("log in first")
            case Keyword.NOOP:
                yield _OK
            case Keyword.STAT:
                remaining = [message for _number, message in self._remaining()]
                yield Send(b"+OK %d %d\r\n" % (len(remaining), sum(message.size_bytes for message in remaining)))
            case Keyword.RSET:
                self._deleted.clear()
                yield Send(b"+OK %d messages\r\n" % len(self._messages))
            case commands.Listing(uids):
                yield from self._list(uids=uids)
            case commands.ListMessage() | commands.Retrieve() | commands.Delete():
                yield self._on_message(command)
            case _:
                assert_never(command)

    # The AUTHORIZATION state

    def _authorization(self, command: commands.User | commands.Password | commands.Auth) -> Iterator[Action]:
        match command:
            case commands.Auth():
                yield from self._auth(command)
            case _ if not self._clear_text_allowed:
                yield _CLEAR_TEXT
            case commands.User(login):
                self._login = login
                yield _OK  # also for unknown users
            case commands.Password(secret):
                if self._login is None:
                    yield from self._error("send USER first")
                    return
                login, self._login = self._login, None
                yield self._log_in(login, secret)
            case _:
                assert_never(command)

    def _auth(self, command: commands.Auth) -> Iterator[Action]:
        if command.mechanism is None:  # in no RFC: clients older than CAPA send it
            yield Send(b"+OK\r\nPLAIN\r\n.\r\n" if self._clear_text_allowed else b"+OK\r\n.\r\n")
        elif command.mechanism != b"PLAIN":
            yield from self._error("unknown mechanism")
        elif not self._clear_text_allowed:
            yield _CLEAR_TEXT
        elif command.initial_response is None:
            self._state = _State.RESPONSE
            yield Send(b"+ \r\n")  # RFC 5034 section 4: an empty challenge
        else:
            # RFC 5034 section 4: "=" is an empty response.
            yield from self._sasl_plain(b"" if command.initial_response == b"=" else command.initial_response)

    def _sasl_plain(self, response: bytes) -> Iterator[Action]:
        """SASL PLAIN (RFC 4616 section 2): authorization identity, NUL, login, NUL, password."""
        if response == b"*":
            yield Send(b"-ERR AUTH cancelled\r\n")  # RFC 5034 section 4
            return
        try:
            identity, login, password = base64.b64decode(response, validate=True).split(b"\0")
        except (binascii.Error, ValueError):
            yield from self._error("malformed response")
            return
        if identity not in (b"", login):
            yield from self.log_in_failed(LoginFailure.INVALID_CREDENTIALS)  # no proxy authorization
            return
        yield self._log_in(login, password)

    def _log_in(self, login: bytes, password: bytes) -> LogIn:
        # Text that is not UTF-8 matches no user; it is checked anyway, so that the time is the same.
        return LogIn(login.decode("utf-8", "replace"), password.decode("utf-8", "replace"))

    def logged_in(self, messages: Sequence[StoredMessage]) -> Iterator[Action]:
        """Login succeeded and the mailbox is locked; the session sees `messages` until its end."""
        self._messages = messages
        self._state = _State.TRANSACTION
        yield Send(
            b"+OK %d messages (%d octets)\r\n" % (len(messages), sum(message.size_bytes for message in messages))
        )

    def log_in_failed(self, failure: LoginFailure) -> Iterator[Action]:
        """Login failed; called after the failure delay."""
        match failure:
            case LoginFailure.INVALID_CREDENTIALS:
                yield _WRONG
                self._failures += 1
                if self._failures >= MAX_LOGIN_FAILURES:
                    self._state = _State.ENDED
                    yield Close("auth_failed")
            case LoginFailure.UNAVAILABLE:
                yield _UNAVAILABLE
            case LoginFailure.IN_USE:
                yield _IN_USE
            case _:
                assert_never(failure)

    # The TRANSACTION state

    def _remaining(self) -> Iterator[tuple[int, StoredMessage]]:
        """The messages that are not marked as deleted; their numbers never change (RFC 1939 section 5)."""
        return ((n, message) for n, message in enumerate(self._messages, 1) if n not in self._deleted)

    def _on_message(self, command: commands.ListMessage | commands.Retrieve | commands.Delete) -> Action:
        number = command.number
        if not 1 <= number <= len(self._messages):
            return _NO_SUCH_MESSAGE
        if number in self._deleted:
            return _DELETED  # RFC 1939 section 5: any reference to it is an error
        message = self._messages[number - 1]
        match command:
            case commands.ListMessage(_, uids):
                return Send(b"+OK " + _line(number, message, uids=uids))
            case commands.Retrieve(_, top_lines):
                return SendMessage(number, message.uid, message.size_bytes, top_lines)
            case commands.Delete():
                self._deleted.add(number)
                return Send(b"+OK message %d marked for deletion\r\n" % number)
            case _:
                assert_never(command)

    def _list(self, *, uids: bool) -> Iterator[Action]:
        yield _OK
        remaining = self._remaining()
        while lines := b"".join(_line(n, message, uids=uids) for n, message in islice(remaining, _LISTING_LINES)):
            yield Send(lines)
        yield _END

    def message_sent(self, number: int) -> None:
        """A message was sent completely."""
        self._retrieved.add(number)

    # The end

    def _quit(self) -> Iterator[Action]:
        if self._state is _State.TRANSACTION:
            expunged = tuple(self._messages[number - 1].uid for number in sorted(self._deleted))
            seen = tuple(
                self._messages[number - 1].uid
                for number in sorted(self._retrieved - self._deleted)
                if not self._messages[number - 1].seen
            )
            yield Update(expunged, seen)
        else:  # RFC 1939 section 6: no UPDATE state
            yield from self.updated(done=True)

    def updated(self, *, done: bool) -> Iterator[Action]:
        """Reply to QUIT after the update (RFC 1939 section 6)."""
        self._state = _State.ENDED
        yield Send(b"+OK bye\r\n" if done else b"-ERR [SYS/TEMP] some deleted messages were not removed\r\n")
        yield Close("quit")

    def _capabilities(self) -> Send:
        """RFC 2449 section 6, RFC 3206 section 6, RFC 5034 section 3. Login methods only where they are allowed."""
        methods = b"USER\r\nSASL PLAIN\r\n" if self._clear_text_allowed else b""
        return Send(
            b"+OK capabilities follow\r\n" + methods + b"TOP\r\nUIDL\r\nPIPELINING\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\n"
            b"EXPIRE NEVER\r\nIMPLEMENTATION eilpost\r\n.\r\n"
        )

    def _error(self, reason: str) -> Iterator[Action]:
        yield Send(f"-ERR {reason}\r\n".encode("ascii"))
        self._errors += 1
        if self._errors >= MAX_ERRORS:
            self._state = _State.ENDED
            yield Close("too_many_errors")


def _line(number: int, message: StoredMessage, *, uids: bool) -> bytes:
    return b"%d %s\r\n" % (number, message.uid.encode("ascii") if uids else b"%d" % message.size_bytes)
