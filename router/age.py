"""Age of the deliveries of a queue: the oldest of each state, and what is runnable (could be delivered now). Pure.

Heaps whose entries are checked when they reach the top (lazy deletion): a change of the queue costs O(log n), so does a
question, and nothing reads the whole queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush

from mail.message import DeliveryId
from mail.record import STATES, Active, Pending, WaitCause, Waiting, state_name

STALE_ENTRIES_MAX = 1000  # entries that may be out of date beyond three for each line

_NEVER = datetime.min.replace(tzinfo=UTC)


class AgeIndex:
    """`lines` is the queue's own table of open lines. Each line is `add`ed after it was written there, and `remove`d
    before it is replaced or removed.
    """

    def __init__(self, lines: Mapping[DeliveryId, Pending]) -> None:
        self._lines = lines
        self._by_state: dict[str, list[DeliveryId]] = {state: [] for state in STATES}  # ids sort by acceptance
        self._runnable: list[tuple[datetime, DeliveryId]] = []
        self._last_due: tuple[datetime, DeliveryId] | None = None
        self._now = _NEVER  # what was due by then is counted
        self.runnable_recipients = 0

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
        """A line's due time has come. Entries come in their order, and one may come twice; `now` follows."""
        if entry != self._last_due and runnable_since(line.state, self._now) is None:
            self._last_due = entry
            if runnable_since(line.state, entry[0]) is not None:
                self.runnable_recipients += len(line.delivery.message.envelope.recipients)
                heappush(self._runnable, entry)

    def advance(self, now: datetime) -> None:
        """Every line that was due by `now` came due."""
        self._now = max(self._now, now)
        self._last_due = None

    def oldest(self) -> dict[str, float]:
        """When the oldest message of each state was received (seconds since 1970), where there is one."""
        found: dict[str, float] = {}
        for state, heap in self._by_state.items():
            while heap:
                line = self._lines.get(heap[0])
                if line is not None and state_name(line.state) == state:
                    found[state] = line.delivery.message.received.timestamp()
                    break
                heappop(heap)
        return found

    def oldest_runnable(self) -> float | None:
        """Since when the delivery that has been runnable for the longest time is runnable (seconds since 1970)."""
        while self._runnable:
            if self._is_current(self._runnable[0]):
                return self._runnable[0][0].timestamp()
            heappop(self._runnable)
        return None

    def prune(self) -> None:
        """Drop entries that are out of date when they outnumber the lines."""
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
    """Since when a delivery in this state is runnable: it is active, throttled, or deferred and its retry time has
    come. None: it waits for its retry time, for an operator or for DNS.
    """
    if isinstance(state, Active):
        return state.since
    if state.cause is WaitCause.THROTTLED or (state.cause is WaitCause.DEFERRED and state.due <= now):
        return state.due
    return None
