"""Pure state of out-of-order consumption: the committed offset and the gaps above it.

Kafka stores one number and up to 4,096 characters of metadata per partition. The number is the committed offset, below
which every offset is finished; the metadata is the read position and the *gaps*, the unfinished offsets below it, so
after SIGKILL only deliveries in flight are attempted again. Gaps are differences in LEB128, compressed, in base64: a
run costs next to nothing, a random gap little more than a byte.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import b64decode, b64encode
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

METADATA_MAX = 4000  # the broker's default limit is 4,096 (offset.metadata.max.bytes)
_VERSION = "1"
# Up to this number `is_full` does not encode them. Gaps that are far apart may not fit; then `to_commit` commits a
# lower position.
_GAPS_UNCHECKED = 1500


class CommittedOffset(NamedTuple):
    """As committed to Kafka: the offset, and the metadata that describes the gaps above it."""

    offset: int
    metadata: str


class OffsetMetadataError(ValueError):
    """The metadata is foreign, damaged or of a newer version; only the last has advice."""


class OffsetTracker:
    """Offset state of one shard: offsets start in order and finish in any order."""

    def __init__(self, position: int = 0, gaps: Sequence[int] = ()) -> None:
        self._position = position
        self._gaps = list(gaps)  # sorted: unfinished offsets below the position

    @classmethod
    def from_committed(cls, committed: CommittedOffset) -> OffsetTracker:
        """Restore a committed state. Raises OffsetMetadataError."""
        if not committed.metadata:
            return cls(committed.offset)
        version = committed.metadata[0]
        if version != _VERSION:
            advice = ": a newer eilpost wrote it; run that version" if version.isdecimal() else ""
            raise OffsetMetadataError(f"it begins with {version!r}, and this eilpost reads version {_VERSION}{advice}")
        try:
            numbers = _decode_leb128(zlib.decompress(b64decode(committed.metadata[1:], validate=True)))
        except (binascii.Error, zlib.error, ValueError) as error:
            raise OffsetMetadataError(f"it cannot be read ({error})") from None
        *gaps, position = accumulate(numbers, initial=committed.offset)
        return cls(position, gaps[1:])

    @property
    def offset_to_commit(self) -> int:
        """Every lower offset is finished."""
        return self._gaps[0] if self._gaps else self._position

    @property
    def gap_count(self) -> int:
        return len(self._gaps)

    @property
    def position(self) -> int:
        return self._position

    @property
    def is_full(self) -> bool:
        """Whether the gaps may not fit into a commit, so that nothing more may start until some are finished."""
        return (
            len(self._gaps) > _GAPS_UNCHECKED
            and len(_encode_metadata(self.offset_to_commit, self._gaps, self._position)) > METADATA_MAX
        )

    def is_finished(self, offset: int) -> bool:
        return offset < self._position and not self._is_gap(offset)

    def start(self, offset: int) -> None:
        """An offset was returned to the owner, possibly again."""
        if offset >= self._position:
            self._gaps.append(offset)
            self._position = offset + 1

    def advance_to(self, position: int) -> None:
        """Everything below `position` was read; offsets that never started are control records."""
        self._position = max(self._position, position)

    def finish(self, offset: int) -> None:
        if self._is_gap(offset):
            del self._gaps[bisect_left(self._gaps, offset)]

    def to_commit(self) -> CommittedOffset:
        """The offset to commit. If the gaps do not fit, the position is lowered to one of them: offsets finished above
        it would be attempted again after SIGKILL, until fewer gaps remain.
        """
        gaps, position = self._gaps, self._position
        while len(metadata := _encode_metadata(self.offset_to_commit, gaps, position)) > METADATA_MAX:
            count = len(gaps) * 3 // 4
            gaps, position = gaps[:count], gaps[count]
        return CommittedOffset(self.offset_to_commit, metadata)

    def _is_gap(self, offset: int) -> bool:
        index = bisect_left(self._gaps, offset)
        return index < len(self._gaps) and self._gaps[index] == offset


def _encode_metadata(offset_to_commit: int, gaps: Sequence[int], position: int) -> str:
    if not gaps:
        return ""
    steps = [offset - previous for previous, offset in pairwise((offset_to_commit, *gaps, position))]
    return _VERSION + b64encode(zlib.compress(_encode_leb128(steps), 6)).decode()


def _encode_leb128(numbers: Sequence[int]) -> bytes:
    """LEB128: seven bits per byte, the eighth marks a continuation."""
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
