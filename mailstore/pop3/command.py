"""POP3 command parser and line reader. Pure.

Line endings and length limits are those of RFC 2449 section 4, the grammar that of RFC 1939 section 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

# RFC 2449 section 4: 255 octets, CRLF included.
MAX_COMMAND_BYTES = 255
# RFC 5034 section 4: a response to a challenge may be longer, with the limit of RFC 4954 section 4.
MAX_RESPONSE_BYTES = 12_288


@dataclass(frozen=True, slots=True)
class User:
    login: bytes


@dataclass(frozen=True, slots=True)
class Password:
    """`secret` may contain spaces (RFC 1939 section 7, PASS)."""

    secret: bytes


@dataclass(frozen=True, slots=True)
class Auth:
    """`mechanism` is in upper case, or None when the client requests the list of mechanisms."""

    mechanism: bytes | None
    initial_response: bytes | None


class Keyword(Enum):
    """A command without an argument."""

    CAPA = b"CAPA"
    NOOP = b"NOOP"
    QUIT = b"QUIT"
    RSET = b"RSET"
    STAT = b"STAT"


@dataclass(frozen=True, slots=True)
class Listing:
    """LIST, or UIDL with `uids`."""

    uids: bool


@dataclass(frozen=True, slots=True)
class ListMessage:
    """LIST or UIDL of one message."""

    number: int
    uids: bool


@dataclass(frozen=True, slots=True)
class Retrieve:
    """RETR, or TOP with the number of body lines."""

    number: int
    top_lines: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    number: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """An invalid command; `reason` is the reply text."""

    reason: str


Command = User | Password | Auth | Keyword | Listing | ListMessage | Retrieve | Delete | Malformed

_NUMBER = re.compile(rb"[0-9]{1,20}\Z")  # clients ask TOP for 2147483647 lines and more
_USAGE = {
    b"USER": "USER needs one name",
    b"PASS": "PASS needs a password",
    b"AUTH": "AUTH takes a mechanism and an initial response",
    b"LIST": "LIST takes one message number or none",
    b"UIDL": "UIDL takes one message number or none",
    b"RETR": "RETR needs one message number",
    b"DELE": "DELE needs one message number",
    b"TOP": "TOP needs a message number and a number of lines",
    **{keyword.value: f"{keyword.name} takes no argument" for keyword in Keyword},
}


def parse(line: bytes) -> Command:
    """Parse a line without its line ending. Keywords are case-insensitive (RFC 1939 section 3)."""
    keyword, _space, argument = line.partition(b" ")
    keyword = keyword.upper()
    words = argument.split()
    numbers = [int(word) if _NUMBER.match(word) else None for word in words]
    match keyword, words, numbers:
        case b"PASS", _, _ if argument:
            return Password(argument)
        case b"USER", [login], _:
            return User(login)
        case b"AUTH", [], _:
            return Auth(None, None)
        case b"AUTH", [mechanism], _:
            return Auth(mechanism.upper(), None)
        case b"AUTH", [mechanism, initial_response], _:
            return Auth(mechanism.upper(), initial_response)
        case ((b"CAPA" | b"NOOP" | b"QUIT" | b"RSET" | b"STAT"), [], _):
            return Keyword(keyword)
        case ((b"LIST" | b"UIDL"), [], _):
            return Listing(keyword == b"UIDL")
        case ((b"LIST" | b"UIDL"), _, [int(number)]):
            return ListMessage(number, keyword == b"UIDL")
        case b"RETR", _, [int(number)]:
            return Retrieve(number)
        case b"TOP", _, [int(number), int(lines)]:
            return Retrieve(number, lines)
        case b"DELE", _, [int(number)]:
            return Delete(number)
        case _:
            return Malformed(_USAGE.get(keyword, "unknown command"))


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

    def next_line(self, limit_bytes: int = MAX_COMMAND_BYTES) -> bytes | LineTooLong | None:
        """The next line without its CRLF (or LF, for manual tests); None when it is incomplete."""
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) >= limit_bytes or self._dropping:
                self._buffer.clear()
                self._dropping = True
            return None
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        if self._dropping or len(line) > limit_bytes:
            self._dropping = False
            return LineTooLong()
        return line[:-2] if line.endswith(b"\r\n") else line[:-1]
