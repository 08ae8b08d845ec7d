"""Ledger of a load: the recipients that the server accepted and their arrivals. Pure; time is an argument.

It stores one byte per recipient and 34 bytes per message: a million messages take about 40 MB.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from eilpost.load.histogram import Histogram

# Bits of a recipient's state.
ACCEPTED = 1  # 250 after the dot: the recipient must be delivered or bounced
DELIVERED = 2
BOUNCED = 4
DEFERRED = 8  # the sink replied 451 once
IN_DOUBT = 16  # the connection was lost between the dot and the reply
REFUSED = 32  # 5xx from the server
RESENT = 64  # sent again after 4xx to the dot; the server may have stored the first copy

_OPEN_STATES = tuple(bytes([ACCEPTED | deferred | resent]) for deferred in (0, DEFERRED) for resent in (0, RESENT))
_SETTLED = DELIVERED | BOUNCED
_QUEUE_ID = re.compile(rb"(?:queued as|id=)\s*([!-~]+)")
_QUEUE_ID_BYTES = 26
_MAX_REPLY_TEXTS = 50
_MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class LostRecipient:
    """A recipient of an accepted message that was neither delivered nor bounced."""

    id: str
    recipient_index: int
    queue_id: str
    deferred: bool  # the sink replied 451 and there was no retry


@dataclass(slots=True)
class Counts:
    """Numbers of recipients, except as commented."""

    issued: int = 0  # messages started
    accepted: int = 0
    accepted_bytes: int = 0
    delivered: int = 0  # of those accepted
    bounced: int = 0  # of those accepted
    in_doubt: int = 0
    in_doubt_settled: int = 0  # of those in doubt, delivered or bounced
    refused: int = 0
    resent: int = 0  # sent again after a 4xx at the dot
    deferrals: int = 0  # 451 replies of the sink
    arrivals: int = 0  # copies and reports at the sink; grows while there is progress
    duplicates: int = 0  # copies beyond the first
    duplicates_resent: int = 0  # of them, for recipients that were sent again after 4xx to the dot
    duplicate_bounces: int = 0
    damaged: int = 0  # copies with a changed body
    misdirected: int = 0  # copies for a recipient that is not in the message
    unexpected: int = 0  # delivered or bounced although refused or never sent
    wrong_bounces: int = 0  # reports of a failure at a destination that accepts mail
    foreign: int = 0  # messages at the sink from another run
    retried: int = 0  # scheduled retries of messages
    connections_refused: int = 0
    connections_lost: int = 0


class Ledger:
    """Every recipient has an index; message N has the `recipients` indexes from N * recipients on."""

    def __init__(self, run: str, recipients: int = 1) -> None:
        self.run = run
        self.recipients = recipients
        self.counts = Counts()
        self.accept = Histogram()  # seconds from the dot to its 250
        self.end_to_end = Histogram()  # seconds from the dot to the first copy at the sink
        self.replies: Counter[str] = Counter()  # 5xx of the server under test
        self.deferral_replies: Counter[str] = Counter()  # 4xx of the server under test
        self.connection_errors: Counter[str] = Counter()
        self.first_accepted_at = self.last_accepted_at = 0.0
        self.first_arrival_at = self.last_arrival_at = 0.0
        self.duplicate_ids: list[str] = []  # the first _MAX_LISTED
        self._states = bytearray()
        self._dots: array[float] = array("d")
        self._queue_ids = bytearray()

    def issue(self) -> int:
        """Add a record for the next message and return its number."""
        number = self.counts.issued
        self.counts.issued += 1
        self._states.extend(bytes(self.recipients))
        self._dots.append(0.0)
        self._queue_ids.extend(bytes(_QUEUE_ID_BYTES))
        return number

    def dot(self, number: int, now: float) -> None:
        """The final dot is written."""
        self._dots[number] = now

    def accept_message(
        self, number: int, indexes: Sequence[int], size_bytes: int, texts: Sequence[bytes], now: float
    ) -> None:
        """250 after the dot: the server is responsible for these recipients."""
        counts = self.counts
        for index in indexes:
            state = self._states[index]
            self._states[index] = state | ACCEPTED
            if state & DELIVERED:  # the copy arrived before the reply
                counts.delivered += 1
            elif state & BOUNCED:
                counts.bounced += 1
        counts.accepted += len(indexes)
        counts.accepted_bytes += size_bytes
        self.accept.add(now - self._dots[number])
        self.first_accepted_at = self.first_accepted_at or now
        self.last_accepted_at = now
        if texts and (match := _QUEUE_ID.search(texts[-1])) is not None:
            queue_id = match[1][:_QUEUE_ID_BYTES]
            start = number * _QUEUE_ID_BYTES
            self._queue_ids[start : start + len(queue_id)] = queue_id

    def refuse(self, indexes: Sequence[int], reply: str) -> None:
        """5xx: the recipients must not arrive."""
        for index in indexes:
            self.counts.unexpected += _is_unexpected(self._states[index] | REFUSED)
            self._states[index] |= REFUSED
        self.counts.refused += len(indexes)
        _count_text(self.replies, reply, len(indexes))

    def mark_in_doubt(self, indexes: Sequence[int]) -> None:
        """The connection was lost between the dot and the reply: the recipients may or may not arrive."""
        for index in indexes:
            self.counts.in_doubt_settled += bool(self._states[index] & _SETTLED)
            self._states[index] |= IN_DOUBT
        self.counts.in_doubt += len(indexes)

    def resend(self, indexes: Sequence[int]) -> None:
        """4xx after the dot: the message is sent again, although the server may have stored this copy."""
        for index in indexes:
            self._states[index] |= RESENT
        self.counts.resent += len(indexes)

    def defer(self, reply: str) -> None:
        """4xx from the server under test; the message is sent again."""
        self.counts.retried += 1
        _count_text(self.deferral_replies, reply, 1)

    def refuse_connection(self, reason: str) -> None:
        self.counts.connections_refused += 1
        _count_text(self.connection_errors, reason, 1)

    def lose_connection(self, reason: str, *, is_retried: bool) -> None:
        """`is_retried`: the message is sent again."""
        self.counts.connections_lost += 1
        self.counts.retried += is_retried
        _count_text(self.connection_errors, reason, 1)

    def first_attempt(self, index: int) -> bool:
        """Whether this is the first RCPT for the recipient at a deferring destination, which gets 451."""
        if index >= len(self._states) or self._states[index] & DEFERRED:
            return False
        self._states[index] |= DEFERRED
        self.counts.deferrals += 1
        return True

    def arrive(self, number: int, indexes: Sequence[int], intact: bool, now: float) -> None:
        """The sink received message `number` for these recipients."""
        for index in indexes:
            if index >= len(self._states) or index // self.recipients != number:
                self.counts.misdirected += 1
                continue
            self.counts.damaged += not intact
            if self._settle(index, DELIVERED, now):
                self.end_to_end.add(now - self._dots[number])

    def bounce(self, indexes: Sequence[int], now: float) -> None:
        """A DSN reported that these recipients failed."""
        for index in indexes:
            if index < len(self._states):
                self._settle(index, BOUNCED, now)

    def _settle(self, index: int, result: int, now: float) -> bool:
        """Record an arrival; returns whether it is the first for this recipient."""
        counts = self.counts
        counts.arrivals += 1
        self.first_arrival_at = self.first_arrival_at or now
        self.last_arrival_at = now
        state = self._states[index]
        self._states[index] = state | result
        if state & _SETTLED:
            if result == DELIVERED:
                counts.duplicates += 1
                counts.duplicates_resent += bool(state & RESENT)
            else:
                counts.duplicate_bounces += 1
            if len(self.duplicate_ids) < _MAX_LISTED:
                self.duplicate_ids.append(self.id_of(index // self.recipients))
            if result == DELIVERED and not state & DELIVERED and state & ACCEPTED:
                counts.bounced -= 1  # reported as failed and delivered: counted once, as delivered
                counts.delivered += 1
            return False
        if state & ACCEPTED:
            if result == DELIVERED:
                counts.delivered += 1
            else:
                counts.bounced += 1
        elif state & IN_DOUBT:
            counts.in_doubt_settled += 1
        elif _is_unexpected(state | result) or not self._dots[index // self.recipients]:
            counts.unexpected += 1
        return True

    @property
    def in_flight(self) -> int:
        """Number of recipients accepted and not settled."""
        counts = self.counts
        return counts.accepted - counts.delivered - counts.bounced

    def oldest_dot(self) -> float | None:
        """The time of the dot of the lowest-numbered message with an open recipient."""
        index = min((at for state in _OPEN_STATES if (at := self._states.find(state)) >= 0), default=None)
        return None if index is None else self._dots[index // self.recipients]

    def open(self, limit: int | None = None) -> Iterator[LostRecipient]:
        """Recipients accepted and not settled, by index."""
        return islice(self._open(), limit)

    def _open(self) -> Iterator[LostRecipient]:
        for index, state in enumerate(self._states):
            if state & ACCEPTED and not state & _SETTLED:
                number = index // self.recipients
                yield LostRecipient(self.id_of(number), index, self.queue_id(number), bool(state & DEFERRED))

    def queue_id(self, number: int) -> str:
        start = number * _QUEUE_ID_BYTES
        return self._queue_ids[start : start + _QUEUE_ID_BYTES].rstrip(b"\0").decode()

    def id_of(self, number: int) -> str:
        return f"{self.run}-{number}"


def _is_unexpected(state: int) -> bool:
    """Settled although refused, except when an earlier copy with a 4xx reply may have been stored."""
    return bool(state & REFUSED and state & _SETTLED and not state & RESENT)


def _count_text(texts: Counter[str], text: str, count: int) -> None:
    """Count by text, in bounded memory: queue ids and addresses can make every text different."""
    if text not in texts and len(texts) >= _MAX_REPLY_TEXTS:
        text = "other replies"
    texts[text] += count
