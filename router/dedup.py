"""Recently processed queue ids of a shard, to detect duplicate appends. No I/O.

Queue entries detect a duplicate of an open message; this set covers messages that closed at once. A Kafka producer
without idempotence may repeat an append within its delivery time-out, which is far shorter than ten minutes. Above
`ENTRIES_MAX` the oldest ids are dropped earlier.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from mail.message import QueueId

RETENTION = timedelta(minutes=10)
ENTRIES_MAX = 100_000  # about 10 MB


class RecentQueueIds:
    """Queue ids in processing order. Not durable: a new owner of the shard starts with none."""

    def __init__(self) -> None:
        self._seen: dict[QueueId, datetime] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def __contains__(self, queue_id: QueueId) -> bool:
        return queue_id in self._seen

    def add(self, queue_ids: Iterable[QueueId], now: datetime) -> None:
        """Call after the commit: an uncommitted decision must be repeated."""
        seen = self._seen
        seen.update(dict.fromkeys(queue_ids, now))
        while seen:
            oldest = next(iter(seen))
            if len(seen) <= ENTRIES_MAX and now - seen[oldest] <= RETENTION:
                break
            del seen[oldest]
