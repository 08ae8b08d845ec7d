"""Counts what a batch decided, for the ledger and the metrics. Pure; `router/shard.py` publishes it after the commit.

The ledger's law: accepted + expanded - merged - delivered - failed - discarded = recipients open in the queue. All of
it is read off the records, so no decision has to remember to count.
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
    AttemptRecorded,
    Bounced,
    Closed,
    Event,
    EventDetail,
    Pending,
    Received,
    Record,
    Refused,
    Resumed,
    Routed,
    Settled,
)
from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved
from router.decide import Due, Fact


class BatchAccounting:
    """What one batch came to. Ledger entries are recipients; a message that grows by its aliases adds to `expanded`,
    one that shrinks (two names of one mailbox) to `merged`.
    """

    def __init__(self) -> None:
        self.ledger: Counter[str] = Counter()
        self.routed: Counter[str] = Counter()  # recipients by kind of route
        self.messages = self.bytes = 0  # accepted messages that were routed, and their size
        self.duplicates = 0
        self.dsns = 0
        self.first_attempt_delays: list[float] = []  # seconds from received to the first attempt's start
        self.times_in_queue: list[tuple[str, float]] = []  # result, seconds from received
        self._net_expansion = 0

    def add_decision(self, fact: Fact, line: Pending | None, records: Sequence[Record], now: datetime) -> None:
        """`line` is the fact's queue line before the decision; `records` all that the decision yielded."""
        match fact:
            case Accepted():
                if not records:
                    self.duplicates += 1
            case Attempted():
                if not records or line is None:
                    self.duplicates += 1
                    return
                if fact.number == 1:
                    self.first_attempt_delays.append(_seconds_since_received(line, fact.started))
            case Due():
                pass
            case _:
                assert_never(fact)
        failed = self.ledger["failed"] + self.ledger["discarded"]
        is_new = isinstance(fact, Accepted)
        is_settled = False
        self._net_expansion = 0
        for record in records:
            if isinstance(record, Event):
                self._add_event(record.detail, is_new)
            elif isinstance(record, Settled):
                is_settled = True
            elif isinstance(record, Accepted):
                self.dsns += 1
        if self._net_expansion > 0:
            self.ledger["expanded"] += self._net_expansion
        elif self._net_expansion < 0:
            self.ledger["merged"] -= self._net_expansion
        if is_settled and line is not None:
            any_failed = self.ledger["failed"] + self.ledger["discarded"] > failed
            self.times_in_queue.append(("failed" if any_failed else "delivered", _seconds_since_received(line, now)))

    def _add_event(self, what: EventDetail, is_new: bool) -> None:
        ledger = self.ledger
        match what:
            case Received():
                recipients = len(what.message.envelope.recipients)
                ledger["accepted"] += recipients
                self.messages += 1
                self.bytes += what.message.size_bytes
                self._net_expansion -= recipients
            case Routed():
                self._net_expansion += len(what.recipients)
                self.routed[route_kind(what.route)] += len(what.recipients)
            case Refused():
                ledger["failed"] += len(what.outcomes)
                if is_new:
                    self._net_expansion += len(what.outcomes)
                    self.routed["failed"] += len(what.outcomes)
            case AttemptRecorded():
                for outcome in what.outcomes:
                    if isinstance(outcome, Delivered):
                        ledger["delivered"] += 1
                    elif isinstance(outcome, Failed):
                        ledger["failed"] += 1
            case Bounced():
                if what.dsn is None:  # nobody to tell: discarded instead
                    ledger["failed"] -= len(what.recipients)
                    ledger["discarded"] += len(what.recipients)
            case Resumed() | Closed():
                pass
            case _:
                assert_never(what)


class Ledger:
    """What the tallies since a shard was opened say about the recipients in its queue. A drift is a bug."""

    def __init__(self, open_recipients: int) -> None:
        self._expected = open_recipients

    def add(self, accounting: BatchAccounting) -> None:
        entries = accounting.ledger
        self._expected += entries["accepted"] + entries["expanded"] - entries["merged"]
        self._expected -= entries["delivered"] + entries["failed"] + entries["discarded"]

    def drift(self, open_recipients: int) -> int:
        """Recipients the ledger has too many (lost by the queue) or, negative, too few."""
        return self._expected - open_recipients


def route_kind(route: Route) -> str:
    """The route's kind as metrics name it."""
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


def _seconds_since_received(line: Pending, time: datetime) -> float:
    return max(0.0, (time - line.delivery.message.received).total_seconds())
