"""What a Kafka broker says of itself before anything else: ApiVersions, asked by hand, and read. Pure.

aiokafka asks it too, in an older form that says nothing of features, and hides what went wrong. Answered before any
log-in, so it tells a broker from a stranger. `metadata.version` is one of its features: the newest a broker knows
tells its release, the one in force is the cluster's. Source: Kafka's protocol guide, ApiVersions version 3 (KIP-511,
KIP-584), and `kafka-storage version-mapping`. Next: `mail/log/kafka/reaching.py`.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

ANSWER_BYTES_MAX = 1 << 16
_KEY, _VERSION, _CORRELATION = 18, 3, 1817
_OLDER = 35  # UNSUPPORTED_VERSION: a broker before 2.4
_METADATA = "metadata.version"
# The last `metadata.version` of each release.
_LEVELS = (1, 2, 3, 7, 8, 11, 14, 19, 20, 21, 25, 27, 29, 30)
_RELEASES = ("3.0", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "4.0", "4.1", "4.2", "4.3")


class NoBroker(ValueError):
    """No broker answers like this."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """`known`: the newest level of each feature this broker has; `in_force`: those of its cluster."""

    known: Mapping[str, int]
    in_force: Mapping[str, int]

    @property
    def release(self) -> str:
        """ "4.3", or in words what can be told."""
        return _release(self.known.get(_METADATA))

    @property
    def level(self) -> str:
        """The release whose features the cluster uses."""
        return _release(self.in_force.get(_METADATA))

    @property
    def is_behind(self) -> bool:
        """Whether its cluster still uses the features of an older release."""
        return self.in_force.get(_METADATA, 0) < self.known.get(_METADATA, 0)


def _release(level: int | None) -> str:
    if level is None:
        return "before 3.3"
    at = bisect_left(_LEVELS, level)
    return _RELEASES[at] if at < len(_RELEASES) else f"after {_RELEASES[-1]}"


def question(client: str = "eilpost") -> bytes:
    """The request, its length included."""
    name = client.encode()
    header = struct.pack(">hhih", _KEY, _VERSION, _CORRELATION, len(name)) + name + b"\0"
    text = bytes([len(name) + 1]) + name
    body = header + text + text + b"\0"
    return struct.pack(">i", len(body)) + body


def size_of(data: bytes) -> int:
    """The length of the answer, from its first four bytes. Raises NoBroker."""
    (size,) = struct.unpack(">i", data)
    if not 4 <= size <= ANSWER_BYTES_MAX:
        raise NoBroker("its first bytes are no length")
    return int(size)


def read(answer: bytes) -> Greeting:
    """The answer without its length. Raises NoBroker."""
    try:
        correlation, error = struct.unpack_from(">ih", answer)
        if correlation != _CORRELATION or error not in (0, _OLDER):
            raise NoBroker("it answers another question")
        return Greeting({}, {}) if error == _OLDER else _Reading(answer, 6).greeting()
    except (struct.error, IndexError, UnicodeDecodeError):
        raise NoBroker("its answer cannot be read") from None


class _Reading:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def greeting(self) -> Greeting:
        known: dict[str, int] = {}
        in_force: dict[str, int] = {}
        for _ in range(self._count()):  # api key, least and greatest version: aiokafka looks at them itself
            self._numbers(">hhh")
            self._skip_tags()
        self._numbers(">i")  # throttle time
        for tag, end in self._tags():
            if tag == 0:
                known = {name: most for name, _, most in self._features()}
            elif tag == 2:
                in_force = {name: most for name, most, _ in self._features()}
            self._at = end
        return Greeting(known, in_force)

    def _features(self) -> Iterator[tuple[str, int, int]]:
        for _ in range(self._count()):
            length = self._unsigned() - 1
            name = self._data[self._at : self._at + length].decode()
            self._at += length
            first, second = self._numbers(">hh")
            self._skip_tags()
            yield name, first, second

    def _tags(self) -> Iterator[tuple[int, int]]:
        """Each tagged field's number and where it ends."""
        for _ in range(self._unsigned()):
            tag, size = self._unsigned(), self._unsigned()
            yield tag, self._at + size

    def _skip_tags(self) -> None:
        for _, end in self._tags():
            self._at = end

    def _count(self) -> int:
        return max(0, self._unsigned() - 1)

    def _numbers(self, form: str) -> tuple[int, ...]:
        numbers = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return numbers

    def _unsigned(self) -> int:
        number = shift = 0
        while shift < 35:
            byte = self._data[self._at]
            self._at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
        raise NoBroker("its answer cannot be read")
