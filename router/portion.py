"""How much goes into one commit: as many inputs as may be, but no more than can follow from them in one breath. Pure.

A batch of two hundred messages is nothing, unless each goes to a list of thousands. So inputs are weighed by what will
follow from them, and taken a few at a time until a portion is full. A step is never larger than what went before it,
and so small that its heaviest, by what was seen lately, would just fill the portion; a message that alone makes more
is a portion of its own. Next: `router/decide.py`.
"""

from __future__ import annotations

from mail.directory import Snapshot
from mail.directory.expand import expand
from mail.message import Inline
from mail.record import Accepted, Attempted

RECORDS = 2000
CONTENT_BYTES = 8 << 20  # what rides in the inputs
STEP = 8  # inputs taken together at most
_EACH = 3  # records that follow from a delivery: its line, its dispatch, its history
_REPORTED_AT_ONCE = 25  # recipients that make two records more when they failed


class Portion:
    """Of one shard. `begin` one, `add` what was taken, and take `step` more until that is 0."""

    def __init__(self, inputs: int) -> None:
        self._inputs = inputs
        self._heaviest = 1.0  # of late
        self._taken = self._records = self._bytes = 0

    def begin(self) -> None:
        self._taken = self._records = self._bytes = 0
        self._heaviest = max(1.0, self._heaviest * 0.9)

    @property
    def step(self) -> int:
        """How many inputs may be taken now."""
        if self._records >= RECORDS or self._bytes >= CONTENT_BYTES:
            return 0
        steady = int((RECORDS - self._records) / self._heaviest)
        return min(self._inputs - self._taken, max(1, min(STEP, self._taken, steady)))

    def add(self, record: Accepted | Attempted, snapshot: Snapshot, alias_depth: int) -> None:
        records = _weigh(record, snapshot, alias_depth)
        self._taken += 1
        self._records += records
        self._heaviest = max(self._heaviest, records)
        if isinstance(record, Attempted):
            self._bytes += len(record.headers)
        elif isinstance(record.content, Inline):
            self._bytes += len(record.content.data)


def _weigh(record: Accepted | Attempted, snapshot: Snapshot, alias_depth: int) -> int:
    """About how many records follow."""
    if isinstance(record, Attempted):
        return _EACH + len(record.outcomes) // _REPORTED_AT_ONCE
    expansion = expand(record.message.envelope.recipients, snapshot, alias_depth)
    return _EACH * (1 + len(expansion.finals)) + len(expansion.refused) // _REPORTED_AT_ONCE
