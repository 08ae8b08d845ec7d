"""What delivery has finished, out of order: a low-water mark, and the holes beyond it. Pure.

A shard's offsets finish in any order; Kafka keeps one number, and 4,096 characters of text, for each. The number is
the low-water mark: everything below is finished. The text says what is finished beyond it: everything up to a
position, except the *holes*, which are in flight. So after a kill only what was in flight is tried again. Holes are
written as the gaps between them, packed and in base64: a run of parked entries costs next to nothing, and a random
hole little more than a byte. Next: `mail/log/kafka/committing.py`.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import b64decode, b64encode
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

TEXT_MAX = 4000  # the broker's default limit is 4,096 (offset.metadata.max.bytes)
_VERSION = "1"
_HOLES_ALWAYS_FIT = 1500  # holes that fit whatever they look like: two bytes each, in base64


class Mark(NamedTuple):
    """As it is committed: all below `low` is finished, and what `text` says of what lies beyond."""

    low: int
    text: str


class MarkError(ValueError):
    """This text is not one of ours, or of a newer version."""


class Marks:
    """The state of one shard. Offsets go in as they are taken, in order, and out as they finish, in any order."""

    def __init__(self, position: int = 0, holes: Sequence[int] = ()) -> None:
        self._position = position
        self._holes = list(holes)  # sorted: not finished, below the position

    @classmethod
    def of(cls, mark: Mark) -> Marks:
        """As committed. Raises MarkError."""
        if not mark.text:
            return cls(mark.low)
        if mark.text[0] != _VERSION:
            raise MarkError(f"it begins with {mark.text[0]!r}, and this eilpost reads version {_VERSION}")
        try:
            numbers = _unpack(zlib.decompress(b64decode(mark.text[1:], validate=True)))
        except (binascii.Error, zlib.error, ValueError) as error:
            raise MarkError(f"it cannot be read ({error})") from None
        holes, at = [], mark.low
        for gap in numbers[:-1]:
            at += gap
            holes.append(at)
        return cls(at + numbers[-1], holes)

    @property
    def low(self) -> int:
        """Everything below is finished."""
        return self._holes[0] if self._holes else self._position

    @property
    def unfinished(self) -> int:
        return len(self._holes)

    @property
    def position(self) -> int:
        return self._position

    @property
    def are_many(self) -> bool:
        """Whether the holes may not fit into a commit: take no more until some are finished."""
        return len(self._holes) > _HOLES_ALWAYS_FIT and len(_text(self.low, self._holes, self._position)) > TEXT_MAX

    def is_finished(self, offset: int) -> bool:
        return offset < self._position and not self._is_hole(offset)

    def take(self, offset: int) -> None:
        """Handed out for the first time, or again."""
        if offset >= self._position:
            self._holes.append(offset)
            self._position = offset + 1

    def read_up_to(self, position: int) -> None:
        """Everything below `position` was read, and what was to be taken is: the rest is the broker's own."""
        self._position = max(self._position, position)

    def finish(self, offset: int) -> None:
        at = bisect_left(self._holes, offset)
        if at < len(self._holes) and self._holes[at] == offset:
            del self._holes[at]

    def mark(self) -> Mark:
        """What to commit. Where the holes do not fit, the last of them become the position: what is finished beyond
        would be tried again after a kill, and is committed as soon as there are fewer.
        """
        holes, position = self._holes, self._position
        text = _text(self.low, holes, position)
        while len(text) > TEXT_MAX:
            keep = len(holes) * 3 // 4
            holes, position = holes[:keep], holes[keep]
            text = _text(self.low, holes, position)
        return Mark(self.low, text)

    def _is_hole(self, offset: int) -> bool:
        at = bisect_left(self._holes, offset)
        return at < len(self._holes) and self._holes[at] == offset


def _text(low: int, holes: Sequence[int], position: int) -> str:
    if not holes:
        return ""
    gaps, at = [], low
    for hole in holes:
        gaps.append(hole - at)
        at = hole
    gaps.append(position - at)
    return _VERSION + b64encode(zlib.compress(_pack(gaps), 6)).decode()


def _pack(numbers: Sequence[int]) -> bytes:
    """LEB128: seven bits a byte, the eighth says that more follow."""
    out = bytearray()
    for number in numbers:
        while number >= 0x80:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)


def _unpack(data: bytes) -> list[int]:
    numbers, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            numbers.append(number)
            number = shift = 0
    if shift or not numbers:
        raise ValueError("it ends inside a number")
    return numbers
