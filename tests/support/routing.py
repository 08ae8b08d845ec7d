"""What the router tests stand on: a small world, short ways to write a message down, and a desk that decides.

The desk does what `router/shard.py` does with a log and a spool, in memory and without waiting: each call is a batch,
applied and committed. What it committed is kept, so a test can replay it, and the ledger is kept beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from mail.address import Address
from mail.directory import Domain, Snapshot, User
from mail.envelope import Envelope, Recipient
from mail.message import Content, DeliveryId, Inline, Message, Spooled, make_queue_id
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import Accepted, Attempted, Dispatched, Event, Happening, Pending, Record, Settled
from mail.reply import Reply
from router.decide import Due, Fact, decide
from router.mailqueue import QUARANTINE, MailQueue
from router.putaside import put_aside
from router.tally import Ledger, Tally
from router.world import Answers, Policy, World

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SENT = Reply(250, "2.0.0", "Taken")
LATER = Reply(451, "4.7.1", "Greylisted, try again later")
NEVER = Reply(550, "5.1.1", "No such user here")
REMOTE = "mx.far.test[192.0.2.1]:25"
CONTENT = b"From: <sender@far.test>\r\nSubject: hello\r\nMessage-ID: <one@far.test>\r\n\r\nbody\r\n"

_numbers = iter(range(1, 1 << 40))


def address(text: str) -> Address:
    return Address.parse(text, utf8=True)


def recipient(text: str, original: str | None = None) -> Recipient:
    return Recipient(address(text), address(original or text))


def message(
    *recipients: str | Recipient,
    sender: str | None = "sender@far.test",
    tenant: str = "default",
    size: int = len(CONTENT),
    received: datetime = START,
    number: int | None = None,
) -> Message:
    """A message like no other; with `number` the same at each call, for tests that are replayed: chance hashes ids."""
    parsed = tuple(recipient(one) if isinstance(one, str) else one for one in recipients or ("user@far.test",))
    envelope = Envelope(None if sender is None else address(sender), parsed)
    queue_id = make_queue_id(int(received.timestamp() * 1000), next(_numbers) if number is None else number)
    return Message(queue_id, tenant, received, envelope, size)


def accepted(*recipients: str | Recipient, content: Content | None = None, **terms: object) -> Accepted:
    return Accepted(message(*recipients, **terms), content or Inline(CONTENT))  # type: ignore[arg-type]


def snapshot(
    users: Sequence[str] = (), aliases: dict[str, Sequence[str]] | None = None, domains: Sequence[Domain] = ()
) -> Snapshot:
    """`example.test` is local; users and aliases as given."""
    local = Domain("example.test", "default")
    return Snapshot(
        domains={domain.name: domain for domain in (local, *domains)},
        users={name: User(address(name)) for name in users},
        aliases={name: tuple(map(address, targets)) for name, targets in (aliases or {}).items()},
    )


def policy(**rules: object) -> Policy:
    return replace(Policy("mx.example.test"), **rules)  # type: ignore[arg-type]


def delivered(one: Recipient) -> Outcome:
    return Delivered(one.address, SENT, REMOTE)


def deferred(one: Recipient) -> Outcome:
    return Deferred(one.address, LATER, REMOTE)


def failed(one: Recipient) -> Outcome:
    return Failed(one.address, NEVER, REMOTE)


@dataclass
class Desk:
    """A shard without a log. `in_hand` is what delivery was given and has not reported."""

    policy: Policy = field(default_factory=policy)
    snapshot: Snapshot = field(default_factory=snapshot)
    answers: Answers = field(default_factory=Answers)
    now: datetime = START
    queue: MailQueue = field(default_factory=MailQueue)
    records: list[Record] = field(default_factory=list)  # all that was committed
    lines: dict[DeliveryId, Pending] = field(default_factory=dict)  # the compacted queue topic
    in_hand: dict[DeliveryId, Dispatched] = field(default_factory=dict)
    reports: list[Accepted] = field(default_factory=list)  # DSNs, not yet fed back
    ledger: Counter[str] = field(default_factory=Counter)
    books: Ledger = field(default_factory=lambda: Ledger(0))  # since the queue was opened
    spooled: int = 0

    def decide(self, fact: Fact) -> list[Record]:
        """One fact, one commit; what came of it."""
        return self._commit(fact, decide(self.queue, fact, World(self.policy, self.snapshot, self.answers), self.now))

    def quarantine(self, fact: Fact) -> list[Record]:
        """As if the decision on the fact had a bug."""
        return self._commit(fact, put_aside(self.queue, fact, f"{QUARANTINE} (test)", self.policy, self.now))

    def _commit(self, fact: Fact, records: Iterator[Record]) -> list[Record]:
        line = None if isinstance(fact, Accepted) else self.queue.line(fact.delivery_id)
        out: list[Record] = []
        for record in records:
            self.queue.apply(record)
            out.append(record)
        tally = Tally()
        tally.note(fact, line, out, self.now)
        self.ledger.update(tally.ledger)
        self.books.add(tally)
        for place, record in enumerate(out):
            if isinstance(record, Pending) and isinstance(record.content, Inline):
                self.spooled += 1
                out[place] = replace(record, content=Spooled(f"s{self.spooled}", len(record.content.data), "0" * 32))
                self.queue.apply(out[place])
        for record in out:
            match record:
                case Pending():
                    self.lines[record.delivery.id] = record
                case Settled():
                    del self.lines[record.delivery_id]
                case Dispatched():
                    assert record.delivery.id not in self.in_hand, "dispatched twice"
                    self.in_hand[record.delivery.id] = record
                case Accepted():
                    self.reports.append(record)
                case _:
                    pass
        self.records += out
        return out

    def tick(self, most: int = 1000) -> list[Record]:
        """Everything whose time has come and whose site has room."""
        out: list[Record] = []
        for delivery_id in self.queue.due(self.now, self.policy.limits, most):
            out += self.decide(Due(delivery_id))
        return out

    def wait(self, time: timedelta) -> list[Record]:
        self.now += time
        return self.tick()

    def report(self, delivery_id: DeliveryId, *outcomes: Outcome, headers: bytes = b"") -> list[Record]:
        """Delivery reports what it was given."""
        return self.decide(self.attempted(delivery_id, *outcomes, headers=headers))

    def attempted(self, delivery_id: DeliveryId, *outcomes: Outcome, headers: bytes = b"") -> Attempted:
        """The report on what delivery was given. Content that waits is spooled by delivery, as the contract says."""
        given = self.in_hand.pop(delivery_id)
        content = None
        if any(isinstance(outcome, Deferred) for outcome in outcomes):
            content = given.content
            if isinstance(content, Inline):
                content = Spooled(f"d-{delivery_id}", len(content.data), "0" * 32)
        return Attempted(delivery_id, given.number, outcomes, self.now, timedelta(seconds=1), content, headers)

    def replayed(self) -> MailQueue:
        """The queue as another owner would find it."""
        queue = MailQueue()
        for line in self.lines.values():
            queue.apply(line)
        return queue

    def replay(self) -> None:
        """Another owner opens the shard."""
        self.queue = self.replayed()
        self.books = Ledger(self.queue.open_recipients)

    def open_recipients(self) -> int:
        return sum(len(line.delivery.message.envelope.recipients) for line in self.lines.values())

    def owed(self) -> int:
        """What the ledger says is open."""
        out = self.ledger
        return out["accepted"] + out["expanded"] - out["merged"] - out["delivered"] - out["failed"] - out["discarded"]


def events(records: Sequence[Record]) -> list[Happening]:
    return [record.what for record in records if isinstance(record, Event)]


def only(kind: type, records: Sequence[Record]) -> list:  # type: ignore[type-arg]
    return [record for record in records if isinstance(record, kind)]


def same(one: MailQueue, other: MailQueue) -> bool:
    """Two queues are the same when nobody can tell them apart by what they know."""
    return (
        {line.delivery.id: line for line in one.lines()} == {line.delivery.id: line for line in other.lines()}
        and one.loads() == other.loads()
        and one.recipients() == other.recipients()
        and one.in_hand == other.in_hand
        and set(one.waiting()) == set(other.waiting())
        and all(
            one.open_deliveries(line.delivery.message.queue_id) == other.open_deliveries(line.delivery.message.queue_id)
            for line in one.lines()
        )
    )
