"""The states of a POP3 session (RFC 1939), as a machine without a socket. Pure.

In charge of what is answered and when; never of passwords, files or bytes of messages: for those it asks its driver by
an action and takes the answer in a method. `receive` yields actions one by one; the driver carries out each before
it takes the next, so a long listing is never whole in memory. Messages are removed by nothing but QUIT.
Next: `mailstore/pop3/transfer.py`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from typing import assert_never

from mailstore.mailboxes import Kept
from mailstore.pop3 import command as said
from mailstore.pop3.command import MAX_COMMAND_OCTETS, MAX_RESPONSE_OCTETS, Command, TooLong

MAX_LOGIN_FAILURES = 3
MAX_ERRORS = 20
MAX_EARLY = 100  # each command starts the idle time anew: a stranger must not stay for ever by it
_SLICE = 500  # lines of a listing in one piece


@dataclass(frozen=True, slots=True)
class Say:
    """Write this."""

    data: bytes


@dataclass(frozen=True, slots=True)
class LogIn:
    """Check the password, take the mailbox lock, read the list; then `logged_in` or `log_in_failed`."""

    login: str
    password: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send a message: all of it, or its header and `top_lines` lines of its body."""

    number: int
    uid: str
    size_bytes: int
    top_lines: int | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """The UPDATE state (RFC 1939 section 6): remove `expunge`, flag `seen`; then `updated`."""

    expunge: tuple[str, ...]
    seen: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Write what is left and close."""

    end: str  # the label of the metric: "quit", "denied", "error"


Action = Say | LogIn | Fetch | Update | Close


class Denied(Enum):
    """Why a log-in failed."""

    WRONG = auto()
    UNAVAILABLE = auto()
    IN_USE = auto()


class _State(Enum):
    AUTHORIZATION = auto()
    RESPONSE = auto()  # of SASL, after the challenge
    TRANSACTION = auto()
    ENDED = auto()


GREETING = Say(b"+OK eilpost POP3 ready\r\n")  # no timestamp: APOP is not offered
TOO_MANY = Say(b"-ERR [SYS/TEMP] too many connections, try again later\r\n")
_CLEAR_TEXT = Say(b"-ERR [AUTH] passwords are not taken in clear text from here\r\n")  # RFC 3206 section 4
_WRONG = Say(b"-ERR [AUTH] wrong user or password\r\n")
_UNAVAILABLE = Say(b"-ERR [SYS/TEMP] the mailbox is not available, try again later\r\n")  # RFC 3206 section 3
_IN_USE = Say(b"-ERR [IN-USE] another session has the mailbox open\r\n")  # RFC 2449 section 8.1.2
_NO_SUCH = Say(b"-ERR no such message\r\n")
_DELETED = Say(b"-ERR the message is marked as deleted\r\n")
_NOT_NOW = Say(b"-ERR not in this state\r\n")
_OK = Say(b"+OK\r\n")
_END = Say(b".\r\n")


class Session:
    """One connection. `clear_text_allowed`: the wire is one on which a password may be taken."""

    def __init__(self, *, clear_text_allowed: bool) -> None:
        # STLS (RFC 2595) will set this to True when the wire is encrypted, and join the capabilities.
        self._clear_text_allowed = clear_text_allowed
        self._state = _State.AUTHORIZATION
        self._login: bytes | None = None
        self._failures = 0
        self._errors = 0
        self._early = 0  # lines before the log-in
        self._kept: Sequence[Kept] = ()
        self._deleted: set[int] = set()
        self._retrieved: set[int] = set()

    @property
    def line_limit(self) -> int:
        """How long the next line may be, in octets with its end."""
        return MAX_RESPONSE_OCTETS if self._state is _State.RESPONSE else MAX_COMMAND_OCTETS

    def receive(self, line: bytes | TooLong) -> Iterator[Action]:
        """The client's next line; what to do about it, in this order."""
        if self._state is not _State.TRANSACTION:
            self._early += 1
            if self._early > MAX_EARLY:
                self._state = _State.ENDED
                yield Say(b"-ERR too many commands without a log-in\r\n")
                yield Close("error")
                return
        if isinstance(line, TooLong):
            if self._state is _State.RESPONSE:
                self._state = _State.AUTHORIZATION
            yield from self._error("line too long")
        elif self._state is _State.RESPONSE:
            self._state = _State.AUTHORIZATION
            yield from self._plain(line)
        else:
            yield from self._command(said.parse(line))

    def _command(self, command: Command) -> Iterator[Action]:
        match command:
            case said.Malformed(why):
                yield from self._error(why)
            case said.Capa():
                yield self._capabilities()
            case said.Quit():
                yield from self._quit()
            case said.User() | said.Password() | said.Auth():
                if self._state is _State.AUTHORIZATION:
                    yield from self._authorization(command)
                else:
                    yield _NOT_NOW
            case _ if self._state is not _State.TRANSACTION:
                yield from self._error("log in first")
            case said.Noop():
                yield _OK
            case said.Stat():
                left = [message for _number, message in self._left()]
                yield Say(b"+OK %d %d\r\n" % (len(left), sum(message.size_bytes for message in left)))
            case said.Reset():
                self._deleted.clear()
                yield Say(b"+OK %d messages\r\n" % len(self._kept))
            case said.ListSizes(number) | said.ListUids(number):
                yield from self._list(number, sizes=isinstance(command, said.ListSizes))
            case said.Retrieve(number):
                found = self._find(number)
                yield found if isinstance(found, Say) else Fetch(number, found.uid, found.size_bytes)
            case said.Top(number, lines):
                found = self._find(number)
                yield found if isinstance(found, Say) else Fetch(number, found.uid, found.size_bytes, lines)
            case said.Delete(number):
                found = self._find(number)
                if isinstance(found, Say):
                    yield found
                else:
                    self._deleted.add(number)
                    yield Say(b"+OK message %d will be removed at QUIT\r\n" % number)
            case _:
                assert_never(command)

    # The AUTHORIZATION state

    def _authorization(self, command: said.User | said.Password | said.Auth) -> Iterator[Action]:
        match command:
            case said.Auth():
                yield from self._auth(command)
            case _ if not self._clear_text_allowed:
                yield _CLEAR_TEXT
            case said.User(login):
                self._login = login
                yield _OK  # whether or not there is such a user
            case said.Password(secret):
                if self._login is None:
                    yield from self._error("USER first")
                    return
                login, self._login = self._login, None
                yield self._log_in(login, secret)
            case _:
                assert_never(command)

    def _auth(self, command: said.Auth) -> Iterator[Action]:
        if command.mechanism is None:
            yield Say(b"+OK\r\nPLAIN\r\n.\r\n" if self._clear_text_allowed else b"+OK\r\n.\r\n")
        elif command.mechanism != "PLAIN":
            yield from self._error("unknown mechanism")
        elif not self._clear_text_allowed:
            yield _CLEAR_TEXT
        elif command.initial is None:
            self._state = _State.RESPONSE
            yield Say(b"+ \r\n")  # RFC 5034 section 4: an empty challenge
        else:
            yield from self._plain(b"" if command.initial == b"=" else command.initial)

    def _plain(self, response: bytes) -> Iterator[Action]:
        """SASL PLAIN (RFC 4616): authorization identity, NUL, login, NUL, password."""
        if response == b"*":
            yield Say(b"-ERR AUTH cancelled\r\n")  # RFC 5034 section 4
            return
        try:
            identity, login, password = base64.b64decode(response, validate=True).split(b"\0")
        except (binascii.Error, ValueError):
            yield from self._error("malformed response")
            return
        if identity not in (b"", login):
            yield from self.log_in_failed(Denied.WRONG)  # nobody may act for another
            return
        yield self._log_in(login, password)

    def _log_in(self, login: bytes, password: bytes) -> LogIn:
        # What is not UTF-8 is nobody's name and nobody's password; it is checked all the same, to take as long.
        return LogIn(login.decode("utf-8", "replace"), password.decode("utf-8", "replace"))

    def logged_in(self, kept: Sequence[Kept]) -> Iterator[Action]:
        """The password is right and the mailbox is ours alone; `kept` is what the session sees until its end."""
        self._kept = kept
        self._state = _State.TRANSACTION
        yield Say(b"+OK %d messages (%d octets)\r\n" % (len(kept), sum(message.size_bytes for message in kept)))

    def log_in_failed(self, denied: Denied) -> Iterator[Action]:
        """The driver has waited out the delay where there is one."""
        match denied:
            case Denied.WRONG:
                yield _WRONG
                self._failures += 1
                if self._failures >= MAX_LOGIN_FAILURES:
                    self._state = _State.ENDED
                    yield Close("denied")
            case Denied.UNAVAILABLE:
                yield _UNAVAILABLE
            case Denied.IN_USE:
                yield _IN_USE
            case _:
                assert_never(denied)

    # The TRANSACTION state

    def _left(self) -> Iterator[tuple[int, Kept]]:
        return ((n, message) for n, message in enumerate(self._kept, 1) if n not in self._deleted)

    def _find(self, number: int) -> Kept | Say:
        if not 1 <= number <= len(self._kept):
            return _NO_SUCH
        return _DELETED if number in self._deleted else self._kept[number - 1]

    def _list(self, number: int | None, *, sizes: bool) -> Iterator[Action]:
        if number is not None:
            found = self._find(number)
            yield found if isinstance(found, Say) else Say(b"+OK " + _line(number, found, sizes=sizes))
            return
        yield _OK
        left = self._left()
        while piece := b"".join(_line(n, message, sizes=sizes) for n, message in islice(left, _SLICE)):
            yield Say(piece)
        yield _END

    def fetched(self, number: int) -> None:
        """All of a message has been sent."""
        self._retrieved.add(number)

    # The end

    def _quit(self) -> Iterator[Action]:
        if self._state is _State.TRANSACTION:
            gone = tuple(self._kept[number - 1].uid for number in sorted(self._deleted))
            seen = tuple(
                self._kept[number - 1].uid
                for number in sorted(self._retrieved - self._deleted)
                if not self._kept[number - 1].seen
            )
            yield Update(gone, seen)
        else:
            yield from self.updated(done=True)

    def updated(self, *, done: bool) -> Iterator[Action]:
        """The mailbox is as the client wanted it, or is not (RFC 1939 section 6)."""
        self._state = _State.ENDED
        yield Say(b"+OK bye\r\n" if done else b"-ERR [SYS/TEMP] some messages were not removed\r\n")
        yield Close("quit")

    def _capabilities(self) -> Say:
        """RFC 2449; the ways to log in are named only where they may be used."""
        ways = b"USER\r\nSASL PLAIN\r\n" if self._clear_text_allowed else b""
        return Say(
            b"+OK capabilities follow\r\n" + ways + b"TOP\r\nUIDL\r\nPIPELINING\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\n"
            b"EXPIRE NEVER\r\nIMPLEMENTATION eilpost\r\n.\r\n"
        )

    def _error(self, why: str) -> Iterator[Action]:
        yield Say(f"-ERR {why}\r\n".encode("ascii"))
        self._errors += 1
        if self._errors >= MAX_ERRORS:
            self._state = _State.ENDED
            yield Close("error")


def _line(number: int, message: Kept, *, sizes: bool) -> bytes:
    if sizes:
        return b"%d %d\r\n" % (number, message.size_bytes)
    return b"%d %s\r\n" % (number, message.uid.encode("ascii"))
