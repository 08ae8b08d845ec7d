"""How much goes into one commit: as many inputs as may be, but no more than can follow from them in one breath. Pure.

A batch of two hundred messages is nothing, unless each goes to a list of thousands. So inputs are weighed by what will
follow from them, and taken a few at a time until a portion is full. A step is never larger than what went before it,
and so small that its heaviest, by what was seen lately, would just fill the portion; a message that alone makes more
is a portion of its own.
"""

from __future__ import annotations

from mail.directory import Snapshot
from mail.directory.expand import expand
from mail.message import Inline
from mail.record import Accepted, Attempted

OUTPUT_RECORDS_MAX = 2000
CONTENT_BYTES_MAX = 8 << 20  # what rides in the inputs
READ_MAX = 8  # inputs taken together at most
_RECORDS_PER_DELIVERY = 3  # records that follow from a delivery: its line, its dispatch, its history
_FAILURES_PER_RECORD = 25  # recipients that make two records more when they failed


class BatchBudget:
    """Of one shard. `reset` it, `add` what was read, and read up to `read_limit` more until that is 0."""

    def __init__(self, inputs_max: int) -> None:
        self._inputs_max = inputs_max
        self._largest_estimate = 1.0  # of late
        self._inputs = self._output_records = self._content_bytes = 0

    def reset(self) -> None:
        self._inputs = self._output_records = self._content_bytes = 0
        self._largest_estimate = max(1.0, self._largest_estimate * 0.9)

    @property
    def read_limit(self) -> int:
        """How many inputs may be taken now."""
        if self._output_records >= OUTPUT_RECORDS_MAX or self._content_bytes >= CONTENT_BYTES_MAX:
            return 0
        affordable = int((OUTPUT_RECORDS_MAX - self._output_records) / self._largest_estimate)
        return min(self._inputs_max - self._inputs, max(1, min(READ_MAX, self._inputs, affordable)))

    def add(self, record: Accepted | Attempted, snapshot: Snapshot, alias_depth: int) -> None:
        estimate = _estimate_output_records(record, snapshot, alias_depth)
        self._inputs += 1
        self._output_records += estimate
        self._largest_estimate = max(self._largest_estimate, estimate)
        if isinstance(record, Attempted):
            self._content_bytes += len(record.headers)
        elif isinstance(record.content, Inline):
            self._content_bytes += len(record.content.data)


def _estimate_output_records(record: Accepted | Attempted, snapshot: Snapshot, alias_depth: int) -> int:
    """About how many records follow."""
    if isinstance(record, Attempted):
        return _RECORDS_PER_DELIVERY + len(record.outcomes) // _FAILURES_PER_RECORD
    expansion = expand(record.message.envelope.recipients, snapshot, alias_depth)
    return (
        _RECORDS_PER_DELIVERY * (1 + len(expansion.final_recipients)) + len(expansion.refused) // _FAILURES_PER_RECORD
    )
