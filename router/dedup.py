"""The queue ids a shard has taken of late: an append that was made twice is known by them. Pure.

A message that is still open is known by its queue lines, for ever; this is for those that closed at once. A plain Kafka
producer may write an append a second time within its time-out, so ten minutes are ample. It is only a memory: a new
owner of the shard begins with none, and beyond its bound it forgets the oldest.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from mail.message import QueueId

RETENTION = timedelta(minutes=10)
ENTRIES_MAX = 100_000  # about 10 MB


class RecentQueueIds:
    """In the order in which they were taken."""

    def __init__(self) -> None:
        self._seen: dict[QueueId, datetime] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def __contains__(self, queue_id: QueueId) -> bool:
        return queue_id in self._seen

    def add(self, queue_ids: Iterable[QueueId], now: datetime) -> None:
        """Once their decision is durable, not before: one that was not is to be made again."""
        seen = self._seen
        seen.update(dict.fromkeys(queue_ids, now))
        while seen:
            oldest = next(iter(seen))
            if len(seen) <= ENTRIES_MAX and now - seen[oldest] <= RETENTION:
                break
            del seen[oldest]
