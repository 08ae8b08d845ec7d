"""Age index of a queue: the oldest delivery of each state, and the runnable deliveries. Pure.

Heaps with lazy deletion: an update or a query costs O(log n) and never scans the queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush

from mail.message import DeliveryId
from mail.record import STATES, Active, Pending, WaitCause, Waiting, state_name

STALE_ENTRIES_MAX = 1000  # stale entries allowed, in addition to three for each line

_NEVER = datetime.min.replace(tzinfo=UTC)


class AgeIndex:
    """`lines` is the queue's table of open lines. Call `add` after a line is stored there, and `remove` before it is
    replaced or removed.
    """

    def __init__(self, lines: Mapping[DeliveryId, Pending]) -> None:
        self._lines = lines
        self._by_state: dict[str, list[DeliveryId]] = {state: [] for state in STATES}  # ids sort by acceptance
        self._runnable: list[tuple[datetime, DeliveryId]] = []
        self._last_due: tuple[datetime, DeliveryId] | None = None
        self._now = _NEVER  # lines due by this time are counted as runnable
        self.runnable_recipients = 0  # at the time of the last `advance`

    def add(self, line: Pending) -> None:
        heappush(self._by_state[state_name(line.state)], line.delivery.id)
        since = runnable_since(line.state, self._now)
        if since is not None:
            self.runnable_recipients += len(line.delivery.message.envelope.recipients)
            heappush(self._runnable, (since, line.delivery.id))

    def remove(self, line: Pending) -> None:
        if runnable_since(line.state, self._now) is not None:
            self.runnable_recipients -= len(line.delivery.message.envelope.recipients)

    def on_due(self, entry: tuple[datetime, DeliveryId], line: Pending) -> None:
        """A line became due. Entries are passed in ascending order, possibly twice; `advance` is called afterwards."""
        if entry != self._last_due and runnable_since(line.state, self._now) is None:
            self._last_due = entry
            if runnable_since(line.state, entry[0]) is not None:
                self.runnable_recipients += len(line.delivery.message.envelope.recipients)
                heappush(self._runnable, entry)

    def advance(self, now: datetime) -> None:
        """`on_due` was called for every line due by `now`."""
        self._now = max(self._now, now)
        self._last_due = None

    def oldest(self) -> dict[str, float]:
        """Receive time of the oldest message of each non-empty state, in Unix seconds."""
        oldest: dict[str, float] = {}
        for state, heap in self._by_state.items():
            while heap:
                line = self._lines.get(heap[0])
                if line is not None and state_name(line.state) == state:
                    oldest[state] = line.delivery.message.received.timestamp()
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
        """Drop stale entries when there are too many."""
        if len(self._runnable) + sum(map(len, self._by_state.values())) <= 3 * len(self._lines) + STALE_ENTRIES_MAX:
            return
        for state in STATES:
            self._by_state[state] = []
        for line in self._lines.values():
            self._by_state[state_name(line.state)].append(line.delivery.id)
        for heap in self._by_state.values():
            heapify(heap)
        self._runnable = [entry for entry in set(self._runnable) if self._is_current(entry)]
        heapify(self._runnable)

    def _is_current(self, entry: tuple[datetime, DeliveryId]) -> bool:
        line = self._lines.get(entry[1])
        return line is not None and runnable_since(line.state, self._now) == entry[0]


def runnable_since(state: Active | Waiting, now: datetime) -> datetime | None:
    """Time since which a delivery in this state is runnable: active, throttled, or deferred with its retry time
    reached. None if it waits for its retry time, for an operator or for DNS.
    """
    if isinstance(state, Active):
        return state.since
    if state.cause is WaitCause.THROTTLED or (state.cause is WaitCause.DEFERRED and state.due <= now):
        return state.due
    return None
