"""Batch sizing by estimated output records, not by input count: one message to a list may produce thousands. Pure.

Inputs are read in small steps until the estimate reaches `OUTPUT_RECORDS_MAX`. A step is at most as large as the inputs
read so far, and its size assumes that each input is as expensive as the largest recent one.
"""

from __future__ import annotations

from mail.directory import Snapshot
from mail.directory.expand import expand
from mail.message import Inline
from mail.record import Accepted, Attempted

OUTPUT_RECORDS_MAX = 2000
CONTENT_BYTES_MAX = 8 << 20  # inline content of the inputs
READ_MAX = 8  # inputs per step
_RECORDS_PER_DELIVERY = 3  # queue entry, Dispatched, event
_FAILURES_PER_RECORD = 25  # 50 failed recipients add two records: a DSN and an event


class BatchBudget:
    """Budget of one shard. Call `reset`, then read up to `read_limit` inputs and `add` each, until the limit is 0."""

    def __init__(self, inputs_max: int) -> None:
        self._inputs_max = inputs_max
        self._largest_estimate = 1.0  # decays with each batch
        self._inputs = self._output_records = self._content_bytes = 0

    def reset(self) -> None:
        self._inputs = self._output_records = self._content_bytes = 0
        self._largest_estimate = max(1.0, self._largest_estimate * 0.9)

    @property
    def read_limit(self) -> int:
        """How many inputs may be read now."""
        if self._output_records >= OUTPUT_RECORDS_MAX or self._content_bytes >= CONTENT_BYTES_MAX:
            return 0
        affordable = int((OUTPUT_RECORDS_MAX - self._output_records) / self._largest_estimate)
        return min(self._inputs_max - self._inputs, max(1, min(READ_MAX, self._inputs, affordable)))

    def add(self, record: Accepted | Attempted, snapshot: Snapshot, alias_depth: int) -> None:
        estimate = _estimate_output_records(record, snapshot, alias_depth)
        self._inputs += 1
        self._output_records += estimate
        self._largest_estimate = max(self._largest_estimate, estimate)
        match record:
            case Attempted():
                self._content_bytes += len(record.headers)
            case Accepted():
                self._content_bytes += len(record.content.data) if isinstance(record.content, Inline) else 0


def _estimate_output_records(record: Accepted | Attempted, snapshot: Snapshot, alias_depth: int) -> int:
    """Estimated number of output records."""
    match record:
        case Attempted():
            return _RECORDS_PER_DELIVERY + len(record.outcomes) // _FAILURES_PER_RECORD
        case Accepted():
            expansion = expand(record.message.envelope.recipients, snapshot, alias_depth)
            deliveries = 1 + len(expansion.final_recipients)
            return _RECORDS_PER_DELIVERY * deliveries + len(expansion.refused) // _FAILURES_PER_RECORD
