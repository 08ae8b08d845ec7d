"""Latency histogram with logarithmic buckets: percentiles within 2 % in constant memory. Pure."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

_LEAST_SECONDS = 1e-4
_GROWTH = math.log(1.02)
_BUCKETS = 1100  # from 0.1 ms to over 80 hours


class Histogram:
    """Durations in seconds."""

    __slots__ = ("_counts", "count", "highest")

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * _BUCKETS))
        self.count = 0
        self.highest = 0.0

    def add(self, seconds: float) -> None:
        if seconds > self.highest:
            self.highest = seconds
        bucket = int(math.log(seconds / _LEAST_SECONDS) / _GROWTH) + 1 if seconds > _LEAST_SECONDS else 0
        self._counts[min(bucket, _BUCKETS - 1)] += 1
        self.count += 1

    def counts(self) -> array[int]:
        """A copy, for `percentile` with `since`."""
        return self._counts[:]

    def percentile(self, share: float, since: Sequence[int] | None = None) -> float | None:
        """The duration that `share` (0 to 1) of the values do not exceed; None without values. `since`: earlier
        `counts()`, to use only the values added since then.
        """
        counts = self._counts if since is None else [now - then for now, then in zip(self._counts, since, strict=True)]
        total = sum(counts)
        if not total:
            return None
        rank, cumulative = math.ceil(share * total), 0
        for bucket, count in enumerate(counts):
            cumulative += count
            if cumulative >= rank and count:
                return min(self.highest, _LEAST_SECONDS * math.exp(bucket * _GROWTH))
        return self.highest
