"""Per-batch counts for the recipient ledger and the metrics, derived from the records of the batch. Pure.

Invariant: accepted + expanded - merged - delivered - failed - discarded = recipients open in the queue.
`router/shard.py` publishes the counts after the commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

from mail.outcome import Delivered, Failed
from mail.record import (
    Accepted,
    Attempted,
    Bounced,
    Closed,
    DeliveryAttempted,
    Discarded,
    Event,
    EventDetail,
    FailedByRouter,
    MessageAccepted,
    QueueEntry,
    QueueTombstone,
    Record,
    Resumed,
    Routed,
)
from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved
from router.decide import Due, Trigger


class BatchAccounting:
    """Counts of one batch. Ledger entries count recipients. Alias expansion that adds recipients counts as `expanded`;
    expansion that removes some (two addresses of one mailbox) counts as `merged`.
    """

    def __init__(self) -> None:
        self.ledger: Counter[str] = Counter()
        self.routed: Counter[str] = Counter()  # recipients by kind of route
        self.messages = self.bytes = 0  # accepted messages that were routed, and their size
        self.duplicates = 0
        self.dsns = 0
        self.first_attempt_delays: list[float] = []  # seconds from received to the first attempt's start
        self.times_in_queue: list[tuple[str, float]] = []  # result, seconds since received
        self._net_expansion = 0

    def add_decision(
        self, trigger: Trigger, entry: QueueEntry | None, records: Sequence[Record], now: datetime
    ) -> None:
        """Count one decision. `entry`: the queue entry before it; `records`: its output."""
        match trigger:
            case Accepted():
                if not records:
                    self.duplicates += 1
            case Attempted():
                if not records or entry is None:
                    self.duplicates += 1
                    return
                if trigger.number == 1:
                    self.first_attempt_delays.append(_seconds_since_received(entry, trigger.started))
            case Due():
                pass
            case _:
                assert_never(trigger)
        failed = self.ledger["failed"] + self.ledger["discarded"]
        is_new = isinstance(trigger, Accepted)
        is_settled = False
        self._net_expansion = 0
        for record in records:
            if isinstance(record, Event):
                self._add_event(record.detail, is_new)
            elif isinstance(record, QueueTombstone):
                is_settled = True
            elif isinstance(record, Accepted):
                self.dsns += 1
        if self._net_expansion > 0:
            self.ledger["expanded"] += self._net_expansion
        elif self._net_expansion < 0:
            self.ledger["merged"] -= self._net_expansion
        if is_settled and entry is not None:
            any_failed = self.ledger["failed"] + self.ledger["discarded"] > failed
            self.times_in_queue.append(("failed" if any_failed else "delivered", _seconds_since_received(entry, now)))

    def _add_event(self, detail: EventDetail, is_new: bool) -> None:
        ledger = self.ledger
        match detail:
            case MessageAccepted():
                recipients = len(detail.message.envelope.recipients)
                ledger["accepted"] += recipients
                self.messages += 1
                self.bytes += detail.message.size_bytes
                self._net_expansion -= recipients
            case Routed():
                self._net_expansion += len(detail.recipients)
                self.routed[route_kind(detail.route)] += len(detail.recipients)
            case FailedByRouter():
                ledger["failed"] += len(detail.outcomes)
                if is_new:
                    self._net_expansion += len(detail.outcomes)
                    self.routed["failed"] += len(detail.outcomes)
            case DeliveryAttempted():
                for outcome in detail.outcomes:
                    if isinstance(outcome, Delivered):
                        ledger["delivered"] += 1
                    elif isinstance(outcome, Failed):
                        ledger["failed"] += 1
            case Discarded():
                ledger["failed"] -= len(detail.recipients)
                ledger["discarded"] += len(detail.recipients)
            case Resumed() | Bounced() | Closed():
                pass
            case _:
                assert_never(detail)


class LedgerBalance:
    """Balance of the ledger of one shard, from its replay on: the number of recipients that should be open."""

    def __init__(self, open_recipients: int) -> None:
        self._expected = open_recipients

    def add(self, accounting: BatchAccounting) -> None:
        entries = accounting.ledger
        self._expected += entries["accepted"] + entries["expanded"] - entries["merged"]
        self._expected -= entries["delivered"] + entries["failed"] + entries["discarded"]

    def drift(self, open_recipients: int) -> int:
        """Expected minus actual recipients: positive if the queue lost some, negative if it has too many. A bug."""
        return self._expected - open_recipients


def route_kind(route: Route) -> str:
    """The route's kind as a metric label."""
    match route:
        case ToMailbox():
            return "mailbox"
        case ToRelay():
            return "relay"
        case ToMx():
            return "mx"
        case Unresolved():
            return "unresolved"
        case _:
            assert_never(route)


def _seconds_since_received(entry: QueueEntry, time: datetime) -> float:
    return max(0.0, (time - entry.delivery.message.received).total_seconds())
