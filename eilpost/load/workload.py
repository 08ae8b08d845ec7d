"""Workload of `eilpost load`: size, sender and recipients of every message. Pure.

A message is determined by its number, from 0. Shares are spread by a Weyl sequence (multiples of an irrational number,
modulo 1), so that any part of the load has the requested shares.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

from mail.units import parse_size

LOAD_ID = "X-Eilpost-Load-Id"
MAX_MESSAGE_BYTES = 64 << 20

_LOAD_ID = re.compile(rb"^X-Eilpost-Load-Id: ([0-9a-z]+)-([0-9]{1,9})\r?$", re.MULTILINE)
_ADDRESS = re.compile(r"r([0-9]{1,10})\.([0-9a-z]+)@(d|failing|deferring)[0-9]*\.")
_SIZE = re.compile(r"([^:]+)(?::([0-9]+(?:\.[0-9]+)?))?\Z")
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)%\Z")
_LINE = b"0123456789 eilpost load writes lines like this one until a message is large enough\r\n"
_GOLDEN_RATIO, _SILVER_RATIO = (math.sqrt(5) - 1) / 2, math.sqrt(2) - 1
_HEAD_BYTES_MIN = 300


class DestinationKind(StrEnum):
    """The reply of the sink to RCPT; the value is the prefix of the recipient's domain."""

    ACCEPTING = "d"  # 250
    FAILING = "failing"  # 550, always
    DEFERRING = "deferring"  # 451 at the first attempt


@dataclass(frozen=True, slots=True)
class Size:
    size_bytes: int
    weight: float


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One message to send. `head` and `body` are the content as sent: CRLF lines, dot-stuffed."""

    number: int
    sender: str
    recipients: tuple[str, ...]
    head: bytes
    body: bytes
    attempts: int = 0

    @property
    def size_bytes(self) -> int:
        return len(self.head) + len(self.body)


@dataclass(frozen=True, slots=True)
class Recipient:
    """A parsed recipient address. `index` counts the recipients of all messages."""

    index: int
    run: str
    kind: DestinationKind


def parse_sizes(text: str) -> tuple[Size, ...]:
    """`"10kB"`, `"2kB:80,100kB:18,1MB:2"` (size and weight). Raises ValueError with the expected form."""
    sizes = []
    for part in text.split(","):
        match = _SIZE.match(part.strip())
        if match is None:
            raise ValueError('a size like "10kB", or sizes with weights like "2kB:80,100kB:18,1MB:2", is expected')
        size = Size(parse_size(match[1]), float(match[2]) if match[2] is not None else 1.0)
        if not 1 <= size.size_bytes <= MAX_MESSAGE_BYTES:
            raise ValueError(f"a message size from 1B to {MAX_MESSAGE_BYTES >> 20}MiB is expected")
        sizes.append(size)
    if len(sizes) > 20 or not sum(size.weight for size in sizes) > 0:
        raise ValueError("at most 20 sizes are expected, with weights whose sum is greater than 0")
    return tuple(sizes)


def parse_share(text: str) -> float:
    """`"5%"` to 0.05. Raises ValueError with the expected form."""
    match = _SHARE.match(text.strip())
    if match is None or float(match[1]) > 100:
        raise ValueError('a share from "0%" to "100%" is expected, like "5%"')
    return float(match[1]) / 100


def parse_recipient(address: str) -> Recipient | None:
    """The recipient, or None if the address is not from a load."""
    match = _ADDRESS.match(address)
    return Recipient(int(match[1]), match[2], DestinationKind(match[3])) if match is not None else None


def find_load_id(content: bytes, limit: int = 32768) -> tuple[str, int] | None:
    """The run and the message number in a header field within the first `limit` bytes."""
    match = _LOAD_ID.search(content, 0, limit)
    return (match[1].decode(), int(match[2])) if match is not None else None


class Workload:
    """The messages of a load by number."""

    def __init__(
        self,
        run: str,
        *,
        domain: str = "load.test",
        sender: str = "",
        domains: int = 10,
        recipients: int = 1,
        failing: float = 0.0,
        deferring: float = 0.0,
        sizes: Sequence[Size] = (Size(10_000, 1.0),),
        date: str = "",
    ) -> None:
        """`date`: the value of the Date field; empty: no such field."""
        self.run = run
        self.recipients = recipients
        self.sender = sender or f"sender@{domain}"
        self.domain = domain
        self._failing, self._deferring = failing, failing + deferring
        self._counts = {
            DestinationKind.FAILING: max(1, round(domains * failing)),
            DestinationKind.DEFERRING: max(1, round(domains * deferring)),
        }
        accepting = domains - round(domains * failing) - round(domains * deferring)
        self._counts[DestinationKind.ACCEPTING] = max(1, accepting)
        self._date = f"Date: {date}\r\n" if date else ""
        self._bodies = [_body(size.size_bytes) for size in sizes]
        self._bounds = list(accumulate(size.weight for size in sizes))

    def kind(self, index: int) -> DestinationKind:
        share = (index + 1) * _GOLDEN_RATIO % 1.0
        if share < self._failing:
            return DestinationKind.FAILING
        return DestinationKind.DEFERRING if share < self._deferring else DestinationKind.ACCEPTING

    def address(self, index: int) -> str:
        kind = self.kind(index)
        return f"r{index}.{self.run}@{kind}{1 + index % self._counts[kind]}.{self.domain}"

    def body(self, number: int) -> bytes:
        """The same object for all messages of one size."""
        share = (number + 1) * _SILVER_RATIO % 1.0
        return self._bodies[bisect_right(self._bounds, share * self._bounds[-1], hi=len(self._bounds) - 1)]

    def message(self, number: int) -> OutgoingMessage:
        first = number * self.recipients
        recipients = tuple(self.address(index) for index in range(first, first + self.recipients))
        names = ",\r\n ".join(f"<{name}>" for name in recipients)
        head = (
            f"{self._date}From: <{self.sender}>\r\nTo: {names}\r\n"
            f"Subject: eilpost load {self.run} {number}\r\nMessage-ID: <{self.run}.{number}@{self.domain}>\r\n"
            f"{LOAD_ID}: {self.run}-{number}\r\n\r\n"
        )
        return OutgoingMessage(number, self.sender, recipients, head.encode(), self.body(number))


def _body(size_bytes: int) -> bytes:
    """A body for a message of about `size_bytes`; its second line begins with a dot, dot-stuffed (RFC 5321 section
    4.5.2).
    """
    lines, rest = divmod(max(0, size_bytes - _HEAD_BYTES_MIN), len(_LINE))
    parts = [_LINE, b"..", _LINE, _LINE * max(0, lines - 2)]
    if rest > 2:
        parts.append(b"x" * (rest - 2) + b"\r\n")
    return b"".join(parts)
