"""POP3 command parser and line reader. Pure.

Line endings and length limits are those of RFC 2449 section 4, the grammar that of RFC 1939 section 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# RFC 2449 section 4: 255 octets, CRLF included.
MAX_COMMAND_OCTETS = 255
# RFC 5034 section 4 allows longer responses to a challenge; RFC 4954 sets the limit.
MAX_RESPONSE_OCTETS = 12_288


@dataclass(frozen=True, slots=True)
class User:
    login: bytes


@dataclass(frozen=True, slots=True)
class Password:
    """The rest of the line after the first space, including spaces (RFC 1939 section 7, PASS)."""

    secret: bytes


@dataclass(frozen=True, slots=True)
class Auth:
    """`mechanism` is None when the client asks for the list of mechanisms."""

    mechanism: str | None
    initial: bytes | None


@dataclass(frozen=True, slots=True)
class Capa:
    pass


@dataclass(frozen=True, slots=True)
class Quit:
    pass


@dataclass(frozen=True, slots=True)
class Noop:
    pass


@dataclass(frozen=True, slots=True)
class Stat:
    pass


@dataclass(frozen=True, slots=True)
class Reset:
    pass


@dataclass(frozen=True, slots=True)
class ListSizes:
    number: int | None


@dataclass(frozen=True, slots=True)
class ListUids:
    number: int | None


@dataclass(frozen=True, slots=True)
class Retrieve:
    number: int


@dataclass(frozen=True, slots=True)
class Top:
    number: int
    lines: int


@dataclass(frozen=True, slots=True)
class Delete:
    number: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """An invalid command; `reason` is the reply text."""

    reason: str


Command = (
    User
    | Password
    | Auth
    | Capa
    | Quit
    | Noop
    | Stat
    | Reset
    | ListSizes
    | ListUids
    | Retrieve
    | Top
    | Delete
    | Malformed
)

_NUMBER = re.compile(rb"[0-9]{1,9}\Z")
_BARE: dict[bytes, Command] = {b"CAPA": Capa(), b"QUIT": Quit(), b"NOOP": Noop(), b"STAT": Stat(), b"RSET": Reset()}


def parse(line: bytes) -> Command:
    """Parse a line without its line ending. Keywords are case-insensitive (RFC 1939 section 3)."""
    keyword, _space, rest = line.partition(b" ")
    keyword = keyword.upper()
    if keyword == b"PASS":
        return Password(rest) if rest else Malformed("PASS needs a password")
    words = rest.split()
    bare = _BARE.get(keyword)
    if bare is not None:
        return Malformed(f"{keyword.decode()} takes no argument") if words else bare
    if keyword == b"USER":
        return User(words[0]) if len(words) == 1 else Malformed("USER needs one name")
    if keyword == b"AUTH":
        return _parse_auth(words)
    if keyword in (b"LIST", b"UIDL"):
        kind = ListSizes if keyword == b"LIST" else ListUids
        if not words:
            return kind(None)
        number = _number(words[0]) if len(words) == 1 else None
        return kind(number) if number is not None else Malformed(f"{keyword.decode()} takes one message number or none")
    if keyword in (b"RETR", b"DELE"):
        number = _number(words[0]) if len(words) == 1 else None
        if number is None:
            return Malformed(f"{keyword.decode()} needs one message number")
        return Retrieve(number) if keyword == b"RETR" else Delete(number)
    if keyword == b"TOP":
        numbers = [_number(word) for word in words]
        match numbers:
            case [int(number), int(lines)]:
                return Top(number, lines)
            case _:
                return Malformed("TOP needs a message number and a number of lines")
    return Malformed("unknown command")


def _number(word: bytes) -> int | None:
    return int(word) if _NUMBER.match(word) else None


def _parse_auth(words: list[bytes]) -> Command:
    if not words:
        return Auth(None, None)
    if len(words) > 2:
        return Malformed("AUTH takes a mechanism and an initial response")
    try:
        mechanism = words[0].decode("ascii").upper()
    except UnicodeDecodeError:
        return Malformed("unknown mechanism")
    return Auth(mechanism, words[1] if len(words) == 2 else None)


@dataclass(frozen=True, slots=True)
class LineTooLong:
    """A line over the limit; it was discarded up to its end."""


class LineReader:
    """Splits input into lines; holds at most one limit of an unfinished line."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._dropping = False

    def feed(self, data: bytes) -> None:
        """Add received octets."""
        self._buffer += data

    def next_line(self, limit_octets: int = MAX_COMMAND_OCTETS) -> bytes | LineTooLong | None:
        """The next line without its CRLF (or LF, for manual tests); None when it is incomplete."""
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) >= limit_octets or self._dropping:
                self._buffer.clear()
                self._dropping = True
            return None
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        if self._dropping or len(line) > limit_octets:
            self._dropping = False
            return LineTooLong()
        return line[:-2] if line.endswith(b"\r\n") else line[:-1]
