"""Age index of a queue: the oldest delivery of each state, and the runnable deliveries. No I/O.

Heaps with lazy deletion: an update or a query costs O(log n) and never scans the queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush

from mail.message import DeliveryId
from mail.record import STATES, Active, QueueEntry, WaitCause, Waiting, state_name

STALE_ITEMS_MAX = 1000  # stale items allowed, in addition to three for each entry

_NEVER = datetime.min.replace(tzinfo=UTC)


class AgeIndex:
    """`entries` is the queue's table of open entries. Call `add` after an entry is stored there, and `remove` before it
    is replaced or removed.
    """

    def __init__(self, entries: Mapping[DeliveryId, QueueEntry]) -> None:
        self._entries = entries
        self._by_state: dict[str, list[DeliveryId]] = {state: [] for state in STATES}  # ids sort by acceptance
        self._runnable: list[tuple[datetime, DeliveryId]] = []
        self._last_due: tuple[datetime, DeliveryId] | None = None
        self._now = _NEVER  # entries due by this time are counted as runnable
        self.runnable_recipients = 0  # at the time of the last `advance`

    def add(self, entry: QueueEntry) -> None:
        heappush(self._by_state[state_name(entry.state)], entry.delivery.id)
        since = runnable_since(entry.state, self._now)
        if since is not None:
            self.runnable_recipients += len(entry.delivery.message.envelope.recipients)
            heappush(self._runnable, (since, entry.delivery.id))

    def remove(self, entry: QueueEntry) -> None:
        if runnable_since(entry.state, self._now) is not None:
            self.runnable_recipients -= len(entry.delivery.message.envelope.recipients)

    def on_due(self, item: tuple[datetime, DeliveryId], entry: QueueEntry) -> None:
        """An entry became due. Items are passed in ascending order, possibly twice; `advance` is called afterwards."""
        if item != self._last_due and runnable_since(entry.state, self._now) is None:
            self._last_due = item
            if runnable_since(entry.state, item[0]) is not None:
                self.runnable_recipients += len(entry.delivery.message.envelope.recipients)
                heappush(self._runnable, item)

    def advance(self, now: datetime) -> None:
        """`on_due` was called for every entry due by `now`."""
        self._now = max(self._now, now)
        self._last_due = None

    def oldest(self) -> dict[str, float]:
        """Receive time of the oldest message of each non-empty state, in Unix seconds."""
        oldest: dict[str, float] = {}
        for state, heap in self._by_state.items():
            while heap:
                entry = self._entries.get(heap[0])
                if entry is not None and state_name(entry.state) == state:
                    oldest[state] = entry.delivery.message.received.timestamp()
                    break
                heappop(heap)
        return oldest

    def oldest_runnable(self) -> float | None:
        """Start time of the longest-runnable delivery, in Unix seconds."""
        while self._runnable:
            if self._is_current(self._runnable[0]):
                return self._runnable[0][0].timestamp()
            heappop(self._runnable)
        return None

    def prune(self) -> None:
        """Drop stale items when there are too many."""
        if len(self._runnable) + sum(map(len, self._by_state.values())) <= 3 * len(self._entries) + STALE_ITEMS_MAX:
            return
        for state in STATES:
            self._by_state[state] = []
        for entry in self._entries.values():
            self._by_state[state_name(entry.state)].append(entry.delivery.id)
        for heap in self._by_state.values():
            heapify(heap)
        self._runnable = [item for item in set(self._runnable) if self._is_current(item)]
        heapify(self._runnable)

    def _is_current(self, item: tuple[datetime, DeliveryId]) -> bool:
        entry = self._entries.get(item[1])
        return entry is not None and runnable_since(entry.state, self._now) == item[0]


def runnable_since(state: Active | Waiting, now: datetime) -> datetime | None:
    """Time since which a delivery in this state is runnable: active, throttled, or deferred with its retry time
    reached. None if it waits for its retry time, for an operator or for DNS.
    """
    if isinstance(state, Active):
        return state.since
    if state.cause is WaitCause.THROTTLED or (state.cause is WaitCause.DEFERRED and state.due <= now):
        return state.due
    return None
