"""What delivery has finished, out of order: a low-water mark, and the holes beyond it. Pure.

A shard's offsets finish in any order; Kafka keeps one number, and 4,096 characters of text, for each. The number is
the low-water mark: everything below is finished. The text says what is finished beyond it: everything up to a
position, except the *holes*, which are in flight. So after a kill only what was in flight is tried again. Holes are
written as the gaps between them, packed and in base64: a run of parked entries costs next to nothing, and a random
hole little more than a byte.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import b64decode, b64encode
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

METADATA_MAX = 4000  # the broker's default limit is 4,096 (offset.metadata.max.bytes)
_VERSION = "1"
_GAPS_ALWAYS_FIT = 1500  # holes that fit whatever they look like: two bytes each, in base64


class CommittedOffset(NamedTuple):
    """As it is committed: all below `low` is finished, and what `text` says of what lies beyond."""

    offset: int
    metadata: str


class OffsetMetadataError(ValueError):
    """This text is not one of ours, or of a newer version."""


class OffsetTracker:
    """The state of one shard. Offsets go in as they are taken, in order, and out as they finish, in any order."""

    def __init__(self, position: int = 0, gaps: Sequence[int] = ()) -> None:
        self._position = position
        self._gaps = list(gaps)  # sorted: not finished, below the position

    @classmethod
    def from_committed(cls, committed: CommittedOffset) -> OffsetTracker:
        """As committed. Raises MarkError."""
        if not committed.metadata:
            return cls(committed.offset)
        if committed.metadata[0] != _VERSION:
            raise OffsetMetadataError(
                f"it begins with {committed.metadata[0]!r}, and this eilpost reads version {_VERSION}"
            )
        try:
            numbers = _decode_leb128(zlib.decompress(b64decode(committed.metadata[1:], validate=True)))
        except (binascii.Error, zlib.error, ValueError) as error:
            raise OffsetMetadataError(f"it cannot be read ({error})") from None
        gaps, at = [], committed.offset
        for step in numbers[:-1]:
            at += step
            gaps.append(at)
        return cls(at + numbers[-1], gaps)

    @property
    def low_water_mark(self) -> int:
        """Everything below is finished."""
        return self._gaps[0] if self._gaps else self._position

    @property
    def gap_count(self) -> int:
        return len(self._gaps)

    @property
    def position(self) -> int:
        return self._position

    @property
    def is_full(self) -> bool:
        """Whether the holes may not fit into a commit: take no more until some are finished."""
        return (
            len(self._gaps) > _GAPS_ALWAYS_FIT
            and len(_encode_metadata(self.low_water_mark, self._gaps, self._position)) > METADATA_MAX
        )

    def is_finished(self, offset: int) -> bool:
        return offset < self._position and not self._is_gap(offset)

    def start(self, offset: int) -> None:
        """Handed out for the first time, or again."""
        if offset >= self._position:
            self._gaps.append(offset)
            self._position = offset + 1

    def advance_to(self, position: int) -> None:
        """Everything below `position` was read, and what was to be taken is: the rest is the broker's own."""
        self._position = max(self._position, position)

    def finish(self, offset: int) -> None:
        at = bisect_left(self._gaps, offset)
        if at < len(self._gaps) and self._gaps[at] == offset:
            del self._gaps[at]

    def to_commit(self) -> CommittedOffset:
        """What to commit. Where the holes do not fit, the last of them become the position: what is finished beyond
        would be tried again after a kill, and is committed as soon as there are fewer.
        """
        gaps, position = self._gaps, self._position
        text = _encode_metadata(self.low_water_mark, gaps, position)
        while len(text) > METADATA_MAX:
            count = len(gaps) * 3 // 4
            gaps, position = gaps[:count], gaps[count]
            text = _encode_metadata(self.low_water_mark, gaps, position)
        return CommittedOffset(self.low_water_mark, text)

    def _is_gap(self, offset: int) -> bool:
        at = bisect_left(self._gaps, offset)
        return at < len(self._gaps) and self._gaps[at] == offset


def _encode_metadata(low_water_mark: int, gaps: Sequence[int], position: int) -> str:
    if not gaps:
        return ""
    steps, at = [], low_water_mark
    for gap in gaps:
        steps.append(gap - at)
        at = gap
    steps.append(position - at)
    return _VERSION + b64encode(zlib.compress(_encode_leb128(steps), 6)).decode()


def _encode_leb128(numbers: Sequence[int]) -> bytes:
    """LEB128: seven bits a byte, the eighth says that more follow."""
    out = bytearray()
    for number in numbers:
        while number >= 0x80:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)


def _decode_leb128(data: bytes) -> list[int]:
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
