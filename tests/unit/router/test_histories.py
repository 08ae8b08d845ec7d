"""Stateful property test of one shard: live equals replay, no recipient is lost, limits hold, every message closes.

It fails, for example, without `_uncount` in `apply` or without a `QueueTombstone` in `decide`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from mail.directory import Domain
from mail.message import DeliveryId, Inline, Spooled
from mail.record import Accepted, Active, Attempted, QueueEntry, WaitCause, Waiting, state_name
from mail.resolver import DnsUnknown, IpAddresses, MxHosts, NoRecords, NoSuchDomain, NullMx
from mail.route import ToRelay
from router.mail_queue import QUARANTINE_REASON
from router.routing_context import DnsAnswers
from router.site_limits import SiteLimits
from tests.support.builders.routing import (
    CONTENT,
    RouterSimulator,
    accepted,
    deferred,
    delivered,
    failed,
    is_same_queue,
    policy,
    site_loads,
    snapshot,
)

pytestmark = pytest.mark.slow

SNAPSHOT = snapshot(
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
        self.simulator = RouterSimulator(
            policy(
                limits=SiteLimits(deliveries_per_site=3, bytes_per_site=3000, deliveries_per_shard=7),
                recipients_per_delivery=2,
            ),
            SNAPSHOT,
            DnsAnswers(KNOWN, ADDRESS_ANSWERS),
        )
        self.past: list[Attempted] = []
        self.latest = self.simulator.now  # latest time passed to the queue
        self.numbers = count(1)  # per history, so that the same choices give the same jitter

    @rule(
        to=st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=6),
        sender=st.sampled_from([None, "alice@example.test", "s@far.test", "s@nx.test"]),
        tenant=st.sampled_from(["default", "other"]),
        size=st.sampled_from([10, 1000, 5000]),
        spooled=st.booleans(),
    )
    def accept(self, to: list[str], sender: str | None, tenant: str, size: int, spooled: bool) -> None:
        content = Spooled("big", size, "0" * 32) if spooled else Inline(CONTENT)
        self.simulator.decide(
            accepted(
                *to,
                sender=sender,
                tenant=tenant,
                size=size,
                received=self.simulator.now,
                number=next(self.numbers),
                content=content,
            )
        )

    @precondition(lambda self: self.simulator.dsns)
    @rule()
    def accept_dsn(self) -> None:
        self.simulator.decide(self.simulator.dsns.pop())

    @precondition(lambda self: self.simulator.dispatched)
    @rule(data=st.data())
    def attempt(self, data: st.DataObject) -> None:
        self.report_attempt(data.draw(st.sampled_from(sorted(self.simulator.dispatched))), data)

    def report_attempt(self, delivery_id: DeliveryId, data: st.DataObject | None) -> None:
        request = self.simulator.dispatched[delivery_id]
        recipients = request.delivery.message.envelope.recipients
        kinds = [deferred if data is None else data.draw(RESULTS) for _ in recipients]
        outcomes = [kind(recipient) for kind, recipient in zip(kinds, recipients, strict=True)]
        self.simulator.attempt(delivery_id, *outcomes, headers=CONTENT)
        self.past.append(Attempted(delivery_id, request.number, tuple(outcomes), self.simulator.now, timedelta(0)))

    @rule(to=st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=3))
    def accept_quarantined(self, to: list[str]) -> None:
        self.simulator.quarantine(
            accepted(
                *to, received=self.simulator.now, number=next(self.numbers), content=Inline(CONTENT), tenant="default"
            )
        )

    @precondition(lambda self: self.simulator.dispatched)
    @rule(data=st.data())
    def attempt_quarantined(self, data: st.DataObject) -> None:
        delivery_id = data.draw(st.sampled_from(sorted(self.simulator.dispatched)))
        recipients = self.simulator.dispatched[delivery_id].delivery.message.envelope.recipients
        outcomes = [data.draw(st.sampled_from([delivered, deferred]))(recipient) for recipient in recipients]
        self.simulator.quarantine(self.simulator.attempted(delivery_id, *outcomes))

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def attempt_reported_again(self, data: st.DataObject) -> None:
        assert self.simulator.decide(data.draw(st.sampled_from(self.past))) == []

    @rule(seconds=st.sampled_from([0, 1, 90, 4000, 90_000]))
    def time_passes(self, seconds: int) -> None:
        self.simulator.advance(timedelta(seconds=seconds))

    @rule(seconds=st.sampled_from([1, 4000]))
    def clock_is_set_back(self, seconds: int) -> None:
        self.simulator.now -= timedelta(seconds=seconds)
        self.simulator.route_due()

    @rule(domain=st.sampled_from(sorted(KNOWN)), answer=st.sampled_from([None, DnsUnknown("x"), NoSuchDomain()]))
    def dns_changes(self, domain: str, answer: object) -> None:
        mx = dict(KNOWN)
        if answer is None:
            del mx[domain]
        else:
            mx[domain] = answer  # type: ignore[assignment]
        self.simulator.answers = DnsAnswers(mx, ADDRESS_ANSWERS)

    @rule()
    def dns_recovers(self) -> None:
        self.simulator.answers = DnsAnswers(KNOWN, ADDRESS_ANSWERS)

    @rule()
    def another_owner_replays(self) -> None:
        self.simulator.reopen()
        self.latest = self.simulator.now

    @precondition(lambda self: any(isinstance(entry.state, Waiting) for entry in self.simulator.entries.values()))
    @rule(data=st.data(), hold=st.booleans())
    def hold_or_release(self, data: st.DataObject, hold: bool) -> None:
        """No command does this yet; the queue supports its records already."""
        waiting = [entry for entry in self.simulator.entries.values() if isinstance(entry.state, Waiting)]
        entry = data.draw(st.sampled_from(waiting))
        due = datetime.max.replace(tzinfo=self.simulator.now.tzinfo) if hold else self.simulator.now
        why = WaitCause.HELD if hold else WaitCause.THROTTLED
        changed = replace(entry, state=Waiting(due, why, "by hand"))
        self.simulator.entries[entry.delivery.id] = changed
        self.simulator.queue.apply(changed)

    @invariant()
    def live_equals_replayed(self) -> None:
        assert is_same_queue(self.simulator.queue, self.simulator.replayed_queue())

    @invariant()
    def ledger_balances(self) -> None:
        assert (
            self.simulator.open_by_ledger()
            == self.simulator.open_recipients()
            == sum(self.simulator.queue.recipients().values())
        )

    @invariant()
    def ledger_does_not_drift(self) -> None:
        assert self.simulator.balance.drift(self.simulator.queue.open_recipients) == 0

    @invariant()
    def runnable_is_what_could_be_delivered(self) -> None:
        queue, now = self.simulator.queue, self.simulator.now
        self.latest = max(self.latest, now)
        queue.due(now, self.simulator.policy.limits, 0)
        since = {
            entry.delivery.id: entry.state.since if isinstance(entry.state, Active) else entry.state.due
            for entry in self.simulator.entries.values()
            if isinstance(entry.state, Active)
            or entry.state.cause is WaitCause.THROTTLED
            or (entry.state.cause is WaitCause.DEFERRED and entry.state.due <= self.latest)
        }
        recipients = [len(self.simulator.entries[each].delivery.message.envelope.recipients) for each in since]
        assert queue.age_index.runnable_recipients == sum(recipients)
        assert queue.age_index.oldest_runnable() == min((each.timestamp() for each in since.values()), default=None)

    @invariant()
    def oldest_of_each_state_is_correct(self) -> None:
        oldest: dict[str, QueueEntry] = {}
        for delivery_id in sorted(self.simulator.entries):
            entry = self.simulator.entries[delivery_id]
            oldest.setdefault(state_name(entry.state), entry)
        assert self.simulator.queue.age_index.oldest() == {
            state: entry.delivery.message.received.timestamp() for state, entry in oldest.items()
        }

    @invariant()
    def quarantined_deliveries_are_counted(self) -> None:
        reasons = [entry.state.reason for entry in self.simulator.entries.values() if entry.state == _held(entry)]
        assert self.simulator.queue.quarantined_deliveries == sum(
            reason.startswith(QUARANTINE_REASON) for reason in reasons
        )

    @invariant()
    def limits_hold(self) -> None:
        limits = self.simulator.policy.limits
        assert self.simulator.queue.active <= limits.deliveries_per_shard
        for load in site_loads(self.simulator.queue).values():
            assert load.active <= limits.deliveries_per_site
            assert load.active_bytes <= limits.bytes_per_site or load.active == 1

    @invariant()
    def active_lines_are_the_dispatched_ones(self) -> None:
        entries = self.simulator.entries.values()
        assert {entry.delivery.id for entry in entries if isinstance(entry.state, Active)} == set(
            self.simulator.dispatched
        )

    @invariant()
    def every_waiting_line_is_indexed(self) -> None:
        waiting = {
            entry.delivery.id
            for entry in self.simulator.entries.values()
            if isinstance(entry.state, Waiting) and entry.state.cause is not WaitCause.HELD
        }
        assert set(self.simulator.queue.indexed()) == waiting

    @invariant()
    def no_queue_line_has_inline_content(self) -> None:
        for record in self.simulator.records:
            if isinstance(record, QueueEntry):
                assert not isinstance(record.content, Inline)
                assert isinstance(record.state, Active) or record.content is not None

    def teardown(self) -> None:
        """Release held entries; then every message closes."""
        simulator = self.simulator
        for entry in [entry for entry in simulator.entries.values() if entry.state == _held(entry)]:
            changed = replace(entry, state=Waiting(simulator.now, WaitCause.DEFERRED, "released"))
            simulator.entries[entry.delivery.id] = changed
            simulator.queue.apply(changed)
        for _ in range(2000):
            if not simulator.entries and not simulator.dsns:
                break
            while simulator.dsns:
                simulator.decide(simulator.dsns.pop())
            for delivery_id in list(simulator.dispatched):
                self.report_attempt(delivery_id, None)  # deferred until they expire
            simulator.advance(timedelta(hours=3))
        assert not simulator.entries
        assert not simulator.dsns
        assert len(simulator.queue) == 0
        assert site_loads(simulator.queue) == {}
        assert simulator.open_by_ledger() == 0
        assert all(
            record.message.envelope.reverse_path is None for record in simulator.records if type(record) is Accepted
        )


def _held(entry: QueueEntry) -> Waiting | None:
    return entry.state if isinstance(entry.state, Waiting) and entry.state.cause is WaitCause.HELD else None


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_same_choices_give_the_same_history() -> None:
    """Hypothesis replays histories to shrink them, so they must depend on the choices only."""
    histories = [Histories(), Histories()]
    for history in histories:
        history.accept(["u@far.test", "team@example.test"], "s@far.test", "default", 10, spooled=False)
        for delivery_id in sorted(history.simulator.dispatched):
            history.report_attempt(delivery_id, None)
    recipient, other = histories
    assert recipient.simulator.records == other.simulator.records
