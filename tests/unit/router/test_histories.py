"""Random histories of one shard: live equals replayed, no recipient is lost, windows hold, and all comes to an end.

The most important test of the router. It can fail: take the `_uncount` out of `apply`, or a `Settled` out of `decide`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mail.directory import Domain
from mail.message import DeliveryId, Inline, Spooled
from mail.record import Accepted, Attempted, InHand, Pending, Waiting, Why, state_name
from mail.resolver import DnsUnknown, IpAddresses, MxHosts, NoRecords, NoSuchDomain, NullMx
from mail.route import ToRelay
from router.mailqueue import QUARANTINE
from router.window import Limits
from router.world import Answers
from tests.support.routing import CONTENT, Desk, accepted, deferred, delivered, failed, policy, same, snapshot

WORLD = snapshot(
    users=["alice@example.test", "bob@example.test"],
    aliases={
        "team@example.test": ["alice@example.test", "bob@example.test", "x@slow.test", "gone@example.test"],
        "both@example.test": ["team@example.test", "alice@example.test"],
        "loop@example.test": ["pool@example.test"],
        "pool@example.test": ["loop@example.test"],
        "alice@example.test": ["alice@example.test", "archive@far.test"],
    },
    domains=[Domain("relayed.test", "default", relay_to=ToRelay("inner.test", 25))],
)
ADDRESSES = [
    "alice@example.test", "Bob@example.test", "bob+tag@example.test", "gone@example.test", "team@example.test",
    "both@example.test", "loop@example.test", "u@far.test", "v@far.test", "u@slow.test", "u@null.test", "u@nx.test",
    "u@bare.test", "u@relayed.test", "u@[192.0.2.7]", "u@loops.test",
]  # fmt: skip
KNOWN = {
    "far.test": MxHosts(((10, "mx.far.test"),)),
    "slow.test": MxHosts(((10, "mx1.slow.test"), (20, "mx2.slow.test"))),
    "null.test": NullMx(),
    "nx.test": NoSuchDomain(),
    "bare.test": NoRecords(),
    "loops.test": MxHosts(((10, "mx.example.test"),)),
}
ADDRESS_ANSWERS = {"bare.test": IpAddresses(("192.0.2.9",))}
RESULTS = st.sampled_from([delivered, deferred, failed])


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(
            policy(limits=Limits(site=3, site_bytes=3000, shard=7), recipients_per_delivery=2),
            WORLD,
            Answers(KNOWN, ADDRESS_ANSWERS),
        )
        self.past: list[Attempted] = []
        self.latest = self.desk.now  # that the queue was told
        self.numbers = count(1)  # anew: a replay of the same choices must draw the same jitter

    @rule(
        to=st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=6),
        sender=st.sampled_from([None, "alice@example.test", "s@far.test", "s@nx.test"]),
        tenant=st.sampled_from(["default", "other"]),
        size=st.sampled_from([10, 1000, 5000]),
        spooled=st.booleans(),
    )
    def accept(self, to: list[str], sender: str | None, tenant: str, size: int, spooled: bool) -> None:
        content = Spooled("big", size, "0" * 32) if spooled else Inline(CONTENT)
        self.desk.decide(
            accepted(
                *to,
                sender=sender,
                tenant=tenant,
                size=size,
                received=self.desk.now,
                number=next(self.numbers),
                content=content,
            )
        )

    @precondition(lambda self: self.desk.reports)
    @rule()
    def read_own_report(self) -> None:
        self.desk.decide(self.desk.reports.pop())

    @precondition(lambda self: self.desk.in_hand)
    @rule(data=st.data())
    def attempt(self, data: st.DataObject) -> None:
        self._attempt(data.draw(st.sampled_from(sorted(self.desk.in_hand))), data)

    def _attempt(self, delivery_id: DeliveryId, data: st.DataObject | None) -> None:
        given = self.desk.in_hand[delivery_id]
        recipients = given.delivery.message.envelope.recipients
        kinds = [deferred if data is None else data.draw(RESULTS) for _ in recipients]
        outcomes = [kind(one) for kind, one in zip(kinds, recipients, strict=True)]
        self.desk.report(delivery_id, *outcomes, headers=CONTENT)
        self.past.append(Attempted(delivery_id, given.number, tuple(outcomes), self.desk.now, timedelta(0)))

    @rule(to=st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=3))
    def accept_what_breaks_the_decision(self, to: list[str]) -> None:
        self.desk.quarantine(
            accepted(*to, received=self.desk.now, number=next(self.numbers), content=Inline(CONTENT), tenant="default")
        )

    @precondition(lambda self: self.desk.in_hand)
    @rule(data=st.data())
    def attempt_whose_report_breaks_the_decision(self, data: st.DataObject) -> None:
        delivery_id = data.draw(st.sampled_from(sorted(self.desk.in_hand)))
        recipients = self.desk.in_hand[delivery_id].delivery.message.envelope.recipients
        outcomes = [data.draw(st.sampled_from([delivered, deferred]))(one) for one in recipients]
        self.desk.quarantine(self.desk.attempted(delivery_id, *outcomes))

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def attempt_reported_again(self, data: st.DataObject) -> None:
        assert self.desk.decide(data.draw(st.sampled_from(self.past))) == []

    @rule(seconds=st.sampled_from([0, 1, 90, 4000, 90_000]))
    def time_passes(self, seconds: int) -> None:
        self.desk.wait(timedelta(seconds=seconds))

    @rule(seconds=st.sampled_from([1, 4000]))
    def the_clock_is_set_back(self, seconds: int) -> None:
        self.desk.now -= timedelta(seconds=seconds)
        self.desk.tick()

    @rule(domain=st.sampled_from(sorted(KNOWN)), answer=st.sampled_from([None, DnsUnknown("x"), NoSuchDomain()]))
    def dns_changes(self, domain: str, answer: object) -> None:
        mx = dict(KNOWN)
        if answer is None:
            del mx[domain]
        else:
            mx[domain] = answer  # type: ignore[assignment]
        self.desk.answers = Answers(mx, ADDRESS_ANSWERS)

    @rule()
    def dns_is_well_again(self) -> None:
        self.desk.answers = Answers(KNOWN, ADDRESS_ANSWERS)

    @rule()
    def another_owner_replays(self) -> None:
        self.desk.replay()
        self.latest = self.desk.now

    @precondition(lambda self: any(isinstance(line.state, Waiting) for line in self.desk.lines.values()))
    @rule(data=st.data(), hold=st.booleans())
    def hold_or_release(self, data: st.DataObject, hold: bool) -> None:
        """A command comes in a later issue; the queue carries its lines already."""
        waiting = [line for line in self.desk.lines.values() if isinstance(line.state, Waiting)]
        line = data.draw(st.sampled_from(waiting))
        due = datetime.max.replace(tzinfo=self.desk.now.tzinfo) if hold else self.desk.now
        why = Why.HOLD if hold else Why.WINDOW
        changed = replace(line, state=Waiting(due, why, "by hand"))
        self.desk.lines[line.delivery.id] = changed
        self.desk.queue.apply(changed)

    @invariant()
    def live_equals_replayed(self) -> None:
        assert same(self.desk.queue, self.desk.replayed())

    @invariant()
    def ledger_balances(self) -> None:
        assert self.desk.owed() == self.desk.open_recipients() == sum(self.desk.queue.recipients().values())

    @invariant()
    def ledger_does_not_drift(self) -> None:
        assert self.desk.books.drift(self.desk.queue.open_recipients) == 0

    @invariant()
    def runnable_is_what_could_be_delivered(self) -> None:
        queue, now = self.desk.queue, self.desk.now
        self.latest = max(self.latest, now)
        queue.due(now, self.desk.policy.limits, 0)
        since = {
            line.delivery.id: line.state.since if isinstance(line.state, InHand) else line.state.due
            for line in self.desk.lines.values()
            if isinstance(line.state, InHand)
            or line.state.why is Why.WINDOW
            or (line.state.why is Why.RETRY and line.state.due <= self.latest)
        }
        recipients = [len(self.desk.lines[each].delivery.message.envelope.recipients) for each in since]
        assert queue.runnable_recipients() == sum(recipients)
        assert queue.oldest_runnable() == min((each.timestamp() for each in since.values()), default=None)

    @invariant()
    def the_oldest_of_each_state_is_known(self) -> None:
        oldest: dict[str, Pending] = {}
        for delivery_id in sorted(self.desk.lines):
            line = self.desk.lines[delivery_id]
            oldest.setdefault(state_name(line.state), line)
        assert self.desk.queue.oldest() == {
            state: line.delivery.message.received.timestamp() for state, line in oldest.items()
        }

    @invariant()
    def what_is_quarantined_is_counted(self) -> None:
        reasons = [line.state.reason for line in self.desk.lines.values() if line.state == _held(line)]
        assert self.desk.queue.quarantined == sum(reason.startswith(QUARANTINE) for reason in reasons)

    @invariant()
    def windows_hold(self) -> None:
        limits = self.desk.policy.limits
        assert self.desk.queue.in_hand <= limits.shard
        for load in self.desk.queue.loads().values():
            assert load.in_hand <= limits.site
            assert load.in_hand_bytes <= limits.site_bytes or load.in_hand == 1

    @invariant()
    def in_hand_is_what_delivery_has(self) -> None:
        lines = self.desk.lines.values()
        assert {line.delivery.id for line in lines if isinstance(line.state, InHand)} == set(self.desk.in_hand)

    @invariant()
    def nobody_waits_unseen(self) -> None:
        waiting = {
            line.delivery.id
            for line in self.desk.lines.values()
            if isinstance(line.state, Waiting) and line.state.why is not Why.HOLD
        }
        assert set(self.desk.queue.waiting()) == waiting

    @invariant()
    def no_queue_line_carries_a_body(self) -> None:
        for record in self.desk.records:
            if isinstance(record, Pending):
                assert not isinstance(record.content, Inline)
                assert isinstance(record.state, InHand) or record.content is not None

    def teardown(self) -> None:
        """Held lines are released, and whatever the world did, everything comes to an end."""
        desk = self.desk
        for line in [line for line in desk.lines.values() if line.state == _held(line)]:
            changed = replace(line, state=Waiting(desk.now, Why.RETRY, "released"))
            desk.lines[line.delivery.id] = changed
            desk.queue.apply(changed)
        for _ in range(2000):
            if not desk.lines and not desk.reports:
                break
            while desk.reports:
                desk.decide(desk.reports.pop())
            for delivery_id in list(desk.in_hand):
                self._attempt(delivery_id, None)  # deferred to the end of their lifetime
            desk.wait(timedelta(hours=3))
        assert not desk.lines
        assert not desk.reports
        assert len(desk.queue) == 0
        assert desk.queue.loads() == {}
        assert desk.owed() == 0
        assert all(record.message.envelope.reverse_path is None for record in desk.records if type(record) is Accepted)


def _held(line: Pending) -> Waiting | None:
    return line.state if isinstance(line.state, Waiting) and line.state.why is Why.HOLD else None


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_same_choices_make_the_same_history() -> None:
    """Hypothesis replays what it shrinks: what a history does must follow from its choices alone."""
    histories = [Histories(), Histories()]
    for history in histories:
        history.accept(["u@far.test", "team@example.test"], "s@far.test", "default", 10, spooled=False)
        for delivery_id in sorted(history.desk.in_hand):
            history._attempt(delivery_id, None)
    one, other = histories
    assert one.desk.records == other.desk.records
