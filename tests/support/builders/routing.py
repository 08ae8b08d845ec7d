"""Builders for router tests: messages, a directory snapshot, outcomes, and `RouterSimulator`.

The simulator replaces the loop of `router/shard.py` without a log or spool: each call is a committed batch. It keeps
the committed records, so that a test can replay them, and the ledger.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from msgspec.structs import replace

from mail.address import Address
from mail.directory import Domain, Snapshot, User
from mail.envelope import Envelope, Recipient
from mail.message import Content, DeliveryId, Inline, Message, Spooled, make_queue_id
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import Accepted, Attempted, Dispatched, Event, EventDetail, QueueEntry, QueueTombstone, Record
from mail.reply import Reply
from router.accounting import BatchAccounting, LedgerBalance
from router.decide import Due, Trigger, decide
from router.mail_queue import QUARANTINE_REASON, MailQueue
from router.quarantine import quarantine
from router.routing_context import DnsAnswers, RoutingContext, RoutingPolicy

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OK_REPLY = Reply(250, "2.0.0", "Accepted")
DEFERRED_REPLY = Reply(451, "4.7.1", "Greylisted, try again later")
FAILED_REPLY = Reply(550, "5.1.1", "No such user here")
REMOTE = "mx.far.test[192.0.2.1]:25"
CONTENT = b"From: <sender@far.test>\r\nSubject: hello\r\nMessage-ID: <one@far.test>\r\n\r\nbody\r\n"

_numbers = iter(range(1, 1 << 40))


def address(text: str) -> Address:
    return Address.parse(text, utf8=True)


def recipient(text: str, original: str | None = None) -> Recipient:
    return Recipient(address(original or text)).readdressed(address(text))


def message(
    *recipients: str | Recipient,
    sender: str | None = "sender@far.test",
    tenant: str = "default",
    size: int = len(CONTENT),
    received: datetime = START,
    number: int | None = None,
) -> Message:
    """A message with a new queue id; with `number` the same id at each call, because jitter is a hash of it."""
    parsed = tuple(recipient(rcpt) if isinstance(rcpt, str) else rcpt for rcpt in recipients or ("user@far.test",))
    envelope = Envelope(None if sender is None else address(sender), parsed)
    queue_id = make_queue_id(int(received.timestamp() * 1000), next(_numbers) if number is None else number)
    return Message(queue_id, tenant, received, envelope, size)


def accepted(*recipients: str | Recipient, content: Content | None = None, **fields: object) -> Accepted:
    return Accepted(message(*recipients, **fields), content or Inline(CONTENT))  # type: ignore[arg-type]


def snapshot(
    users: Sequence[str] = (), aliases: dict[str, Sequence[str]] | None = None, domains: Sequence[Domain] = ()
) -> Snapshot:
    """A snapshot with the local domain `example.test` and the given users, aliases and domains."""
    local = Domain("example.test", "default")
    return Snapshot(
        domains={domain.name: domain for domain in (local, *domains)},
        users={name: User(address(name)) for name in users},
        aliases={name: tuple(map(address, targets)) for name, targets in (aliases or {}).items()},
    )


def policy(**rules: object) -> RoutingPolicy:
    return dataclasses.replace(RoutingPolicy("mx.example.test"), **rules)  # type: ignore[arg-type]


def delivered(rcpt: Recipient) -> Outcome:
    return Delivered(rcpt.address, OK_REPLY, REMOTE)


def deferred(rcpt: Recipient) -> Outcome:
    return Deferred(rcpt.address, DEFERRED_REPLY, REMOTE)


def failed(rcpt: Recipient) -> Outcome:
    return Failed(rcpt.address, FAILED_REPLY, REMOTE)


@dataclass
class RouterSimulator:
    """A router shard without a log. `dispatched`: deliveries that were not reported yet."""

    policy: RoutingPolicy = field(default_factory=policy)
    snapshot: Snapshot = field(default_factory=snapshot)
    answers: DnsAnswers = field(default_factory=DnsAnswers)
    now: datetime = START
    queue: MailQueue = field(default_factory=MailQueue)
    records: list[Record] = field(default_factory=list)  # all committed records
    entries: dict[DeliveryId, QueueEntry] = field(default_factory=dict)  # the compacted queue topic
    dispatched: dict[DeliveryId, Dispatched] = field(default_factory=dict)
    dsns: list[Accepted] = field(default_factory=list)  # not yet accepted
    ledger: Counter[str] = field(default_factory=Counter)
    balance: LedgerBalance = field(default_factory=lambda: LedgerBalance(0))  # since the last replay
    spooled: int = 0

    def decide(self, trigger: Trigger) -> list[Record]:
        """Decide on one trigger and commit; returns the records."""
        return self._commit(
            trigger, decide(self.queue, trigger, RoutingContext(self.policy, self.snapshot, self.answers), self.now)
        )

    def quarantine(self, trigger: Trigger) -> list[Record]:
        """Quarantine one trigger, as after a bug in its decision."""
        return self._commit(
            trigger, quarantine(self.queue, trigger, f"{QUARANTINE_REASON} (test)", self.policy, self.now)
        )

    def _commit(self, trigger: Trigger, records: Iterator[Record]) -> list[Record]:
        entry = None if isinstance(trigger, Accepted) else self.queue.entry(trigger.delivery_id)
        out: list[Record] = []
        for record in records:
            self.queue.apply(record)
            out.append(record)
        accounting = BatchAccounting()
        accounting.add_decision(trigger, entry, out, self.now)
        self.ledger.update(accounting.ledger)
        self.balance.add(accounting)
        for index, record in enumerate(out):
            if isinstance(record, QueueEntry) and isinstance(record.content, Inline):
                self.spooled += 1
                out[index] = replace(record, content=Spooled(f"s{self.spooled}", len(record.content.data), "0" * 32))
                self.queue.apply(out[index])
        for record in out:
            match record:
                case QueueEntry():
                    self.entries[record.delivery.id] = record
                case QueueTombstone():
                    del self.entries[record.delivery_id]
                case Dispatched():
                    assert record.delivery.id not in self.dispatched, "dispatched twice"
                    self.dispatched[record.delivery.id] = record
                case Accepted():
                    self.dsns.append(record)
                case _:
                    pass
        self.records += out
        return out

    def route_due(self, limit: int = 1000) -> list[Record]:
        """Decide on all due deliveries of sites below their limits."""
        out: list[Record] = []
        for delivery_id in self.queue.due(self.now, self.policy.limits, limit):
            out += self.decide(Due(delivery_id))
        return out

    def advance(self, time: timedelta) -> list[Record]:
        self.now += time
        return self.route_due()

    def attempt(self, delivery_id: DeliveryId, *outcomes: Outcome, headers: bytes = b"") -> list[Record]:
        """Report an attempt and decide on it."""
        return self.decide(self.attempted(delivery_id, *outcomes, headers=headers))

    def attempted(self, delivery_id: DeliveryId, *outcomes: Outcome, headers: bytes = b"") -> Attempted:
        """The report of a dispatched delivery; deferred content is spooled, as by the delivery role."""
        request = self.dispatched.pop(delivery_id)
        content = None
        if any(isinstance(outcome, Deferred) for outcome in outcomes):
            content = request.content
            if isinstance(content, Inline):
                content = Spooled(f"d-{delivery_id}", len(content.data), "0" * 32)
        return Attempted(delivery_id, request.number, outcomes, self.now, timedelta(seconds=1), content, headers)

    def replayed_queue(self) -> MailQueue:
        """The queue as replayed by another owner."""
        queue = MailQueue()
        for entry in self.entries.values():
            queue.apply(entry)
        return queue

    def reopen(self) -> None:
        """Replay, as when another owner takes over the shard."""
        self.queue = self.replayed_queue()
        self.balance = LedgerBalance(self.queue.open_recipients)

    def open_recipients(self) -> int:
        return sum(len(entry.delivery.message.envelope.recipients) for entry in self.entries.values())

    def open_by_ledger(self) -> int:
        """Open recipients according to the ledger."""
        out = self.ledger
        return out["accepted"] + out["expanded"] - out["merged"] - out["delivered"] - out["failed"] - out["discarded"]


def events(records: Sequence[Record]) -> list[EventDetail]:
    return [record.detail for record in records if isinstance(record, Event)]


def of_kind(kind: type, records: Sequence[Record]) -> list:  # type: ignore[type-arg]
    return [record for record in records if isinstance(record, kind)]


class SiteLoad(NamedTuple):
    """Open entries and active deliveries of a site."""

    entries: int
    active: int
    active_bytes: int


def site_loads(queue: MailQueue) -> dict[str, SiteLoad]:
    """Every site with open entries."""
    return {name: SiteLoad(site.entries, site.active, site.active_bytes) for name, site in queue._sites.items()}


def is_same_queue(queue: MailQueue, other_queue: MailQueue) -> bool:
    """Whether all queries of two queues give the same results."""
    return (
        {entry.delivery.id: entry for entry in queue.entries()}
        == {entry.delivery.id: entry for entry in other_queue.entries()}
        and site_loads(queue) == site_loads(other_queue)
        and queue.recipients() == other_queue.recipients()
        and queue.active == other_queue.active
        and set(queue.indexed()) == set(other_queue.indexed())
        and all(
            queue.open_deliveries(entry.delivery.message.queue_id)
            == other_queue.open_deliveries(entry.delivery.message.queue_id)
            for entry in queue.entries()
        )
    )
