"""Retry times that lie further ahead than the schedule allows: they are set to now. Pure: times are arguments.

The clock was ahead when they were chosen, or `router.retry_delays` was shortened. They are corrected at each replay and
when the clock is set back, by queue records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from msgspec.structs import replace

from mail.record import QueueEntry, WaitCause, Waiting
from router.retry import RESOLVE_DELAY_MAX, retry_step

TOLERANCE = timedelta(seconds=1)  # of a clock that is slewed or read late


class ClockStep:
    """Detects that the wall clock was set back against the monotonic clock."""

    def __init__(self) -> None:
        self._offset: timedelta | None = None  # wall clock minus monotonic clock, at the last call
        self._epoch: datetime | None = None

    def is_back(self, now: datetime, monotonic_seconds: float) -> bool:
        """Whether the wall clock was set back since the last call; False at the first."""
        if self._epoch is None:
            self._epoch = now
        offset = now - self._epoch - timedelta(seconds=monotonic_seconds)
        is_back = self._offset is not None and offset < self._offset - TOLERANCE
        self._offset = offset
        return is_back


def due_now(entries: Iterable[QueueEntry], schedule: Sequence[timedelta], now: datetime) -> Iterator[QueueEntry]:
    """The entries with a retry time that is too far in the future, each with the retry time `now`."""
    for entry in entries:
        state = entry.state
        if not isinstance(state, Waiting) or state.cause in (WaitCause.HELD, WaitCause.CORRUPT):
            continue
        if state.due > now + _longest_wait(state.cause, schedule, entry.attempts) + TOLERANCE:
            yield replace(entry, state=replace(state, due=now))


def _longest_wait(cause: WaitCause, schedule: Sequence[timedelta], attempts: int) -> timedelta:
    if cause is WaitCause.DEFERRED:
        return retry_step(schedule, attempts)
    if cause is WaitCause.UNRESOLVED:
        return RESOLVE_DELAY_MAX * 1.25  # with the jitter of `next_resolve_time`
    return timedelta(0)
