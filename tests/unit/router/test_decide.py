"""Tests of `decide`: the records that follow from each trigger."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from email import message_from_bytes
from email import policy as email_policy

import pytest

from mail.directory import Domain
from mail.envelope import Notify, Recipient
from mail.message import Inline, Spooled
from mail.outcome import Deferred, Failed
from mail.record import (
    Accepted,
    Active,
    Attempted,
    Bounced,
    Closed,
    DeliveryAttempted,
    Discarded,
    Dispatched,
    Event,
    FailedByRouter,
    MessageAccepted,
    QueueEntry,
    QueueTombstone,
    Resumed,
    Routed,
    WaitCause,
    Waiting,
)
from mail.reply import Reply
from mail.resolver import DnsUnknown, MxHosts
from mail.route import ToMailbox, ToMx, ToRelay, Unresolved
from router.accounting import BatchAccounting
from router.routing_context import DnsAnswers
from router.site_limits import SiteLimits
from tests.support.builders.routing import (
    CONTENT,
    DEFERRED_REPLY,
    REMOTE,
    START,
    RouterSimulator,
    accepted,
    address,
    deferred,
    delivered,
    events,
    failed,
    of_kind,
    policy,
    recipient,
    site_loads,
    snapshot,
)

FAR = DnsAnswers({"far.test": MxHosts(((10, "mx.far.test"),))})
RELAY = ToRelay("smart.test", 25)


def kinds(records: list[object]) -> list[type]:
    return [type(record.detail) if isinstance(record, Event) else type(record) for record in records]


def simulator(**rules: object) -> RouterSimulator:
    return RouterSimulator(
        policy(relay=RELAY, **rules),
        snapshot(["alice@example.test"], {"list@example.test": ["alice@example.test", "u@far.test"]}),
    )


def test_duplicate_triggers_are_counted() -> None:
    shard, accounting = simulator(), BatchAccounting()
    mail = accepted("u@far.test")
    shard.decide(mail)
    (dispatched_id,) = shard.dispatched
    entry = shard.queue.entry(dispatched_id)
    assert entry is not None
    report = Attempted(dispatched_id, 2, (delivered(recipient("u@far.test")),), START, timedelta(0))
    accounting.add_decision(mail, None, shard.decide(mail), START)
    accounting.add_decision(report, entry, shard.decide(report), START)
    assert accounting.duplicates == 2
    assert not accounting.ledger
    assert not accounting.first_attempt_delays


def test_message_from_accepted_to_closed() -> None:
    shard = simulator()
    mail = accepted("u@far.test")
    out = shard.decide(mail)
    assert kinds(out) == [MessageAccepted, QueueEntry, Dispatched, Routed]
    entry, dispatched = out[1], out[2]
    assert isinstance(entry, QueueEntry)
    assert isinstance(dispatched, Dispatched)
    assert entry.content is None  # the content is stored in Dispatched only
    assert (dispatched.content, dispatched.number, dispatched.delivery.route) == (mail.content, 1, RELAY)
    assert dispatched.delivery.id == f"{mail.message.queue_id}-1"
    out = shard.attempt(dispatched.delivery.id, delivered(recipient("u@far.test")))
    assert kinds(out) == [QueueTombstone, DeliveryAttempted, Closed]
    assert len(shard.queue) == 0


def test_list_is_grouped_by_next_hop_and_split_at_the_recipient_limit() -> None:
    shard = simulator(recipients_per_delivery=2)
    many = [f"u{n}@far.test" for n in range(5)]
    out = shard.decide(accepted("list@example.test", *many))
    parts = {entry.delivery.id[-1]: entry.delivery for entry in of_kind(QueueEntry, out)}
    assert [type(parts[n].route) for n in "1234"] == [ToMailbox, ToRelay, ToRelay, ToRelay]
    assert [len(parts[n].message.envelope.recipients) for n in "1234"] == [1, 2, 2, 2]
    assert [str(r.original) for r in parts["2"].message.envelope.recipients] == ["list@example.test", "u0@far.test"]
    assert shard.open_by_ledger() == 7
    assert shard.ledger["expanded"] == 1


def test_addresses_of_one_owner_share_a_delivery() -> None:
    shard = simulator(recipients_per_delivery=2)
    mail = accepted(*(f"alice+{number}@example.test" for number in range(7)))
    shard.decide(mail)
    [request] = shard.dispatched.values()
    assert request.delivery.route == ToMailbox("alice@example.test")
    assert len(request.delivery.message.envelope.recipients) == 7


def test_duplicate_append_changes_nothing() -> None:
    shard = simulator()
    mail = accepted("u@far.test")
    shard.decide(mail)
    assert shard.decide(mail) == []


def test_partial_result_keeps_deferred_recipients_and_bounces_failed_ones() -> None:
    shard = simulator()
    shard.decide(accepted("a@far.test", "b@far.test", "c@far.test", sender="alice@example.test"))
    (dispatched_id,) = shard.dispatched
    a, b, c = (recipient(f"{name}@far.test") for name in "abc")
    out = shard.attempt(dispatched_id, delivered(a), failed(b), deferred(c), headers=CONTENT)
    assert kinds(out) == [QueueEntry, DeliveryAttempted, Accepted, Bounced]
    entry, attempt, report, bounced = out[0], out[1], out[2], out[3]
    assert isinstance(entry, QueueEntry)
    assert entry.delivery.message.envelope.recipients == (c,)
    assert (entry.attempts, entry.last, entry.content) == (
        1,
        DEFERRED_REPLY,
        Spooled(f"d-{dispatched_id}", len(CONTENT), "0" * 32),
    )
    assert isinstance(entry.state, Waiting)
    assert (entry.state.cause, entry.state.reason) == (WaitCause.DEFERRED, str(DEFERRED_REPLY))
    assert isinstance(attempt, Event)
    outcomes = (delivered(a), failed(b), deferred(c))
    assert attempt.detail == DeliveryAttempted(dispatched_id, 1, outcomes, START, timedelta(seconds=1), entry.state.due)
    assert isinstance(report, Accepted)
    assert isinstance(report.content, Inline)
    assert b"b@far.test" in report.content.data
    assert b"c@far.test" not in report.content.data
    assert b"Subject: hello" in report.content.data
    assert isinstance(bounced, Event)
    assert bounced.detail == Bounced((address("b@far.test"),), report.message.queue_id)
    assert of_kind(Dispatched, shard.route_due()) == []  # not due yet
    resumed = shard.advance(timedelta(minutes=2))
    assert kinds(resumed) == [QueueEntry, Dispatched, Resumed]
    again = resumed[1]
    assert isinstance(again, Dispatched)
    assert (again.number, again.content) == (2, entry.content)


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_repeated_or_outdated_report_is_ignored(repeat: int) -> None:
    shard = simulator()
    shard.decide(accepted("u@far.test"))
    (dispatched_id,) = shard.dispatched
    shard.attempt(dispatched_id, deferred(recipient("u@far.test")))
    stale = Attempted(dispatched_id, repeat, (delivered(recipient("u@far.test")),), START, timedelta(0))
    assert shard.decide(stale) == []  # the delivery waits: no attempt is active
    shard.advance(timedelta(minutes=2))
    assert bool(shard.decide(stale)) == (repeat == 2)  # the active attempt


def test_recipient_missing_in_a_report_stays_open() -> None:
    shard = simulator()
    shard.decide(accepted("a@far.test", "b@far.test", content=Spooled("big", 10, "0" * 32)))
    (dispatched_id,) = shard.dispatched
    out = shard.attempt(dispatched_id, delivered(recipient("b@far.test")))
    entry = out[0]
    assert isinstance(entry, QueueEntry)
    assert [str(r.address) for r in entry.delivery.message.envelope.recipients] == ["a@far.test"]
    assert entry.content == Spooled("big", 10, "0" * 32)


def test_mismatched_report_keeps_the_ledger_balanced() -> None:
    shard = simulator()
    shard.decide(accepted("a@far.test", "b@far.test", content=Spooled("big", 10, "0" * 32)))
    (dispatched_id,) = shard.dispatched
    out = shard.attempt(dispatched_id, delivered(recipient("x@far.test")), delivered(recipient("b@far.test")))
    assert shard.ledger["delivered"] == 1
    assert shard.open_by_ledger() == shard.open_recipients() == 1
    (attempt,) = [what for what in events(out) if isinstance(what, DeliveryAttempted)]
    assert [str(outcome.recipient) for outcome in attempt.outcomes] == ["a@far.test", "b@far.test"]


def test_lifetime_ends_with_a_last_attempt_and_a_bounce() -> None:
    shard = simulator(lifetime=timedelta(hours=1), retry=(timedelta(minutes=20),))
    shard.decide(accepted("u@far.test", sender="alice@example.test"))
    attempts = 0
    while shard.entries:
        for dispatched_id in list(shard.dispatched):
            attempts += 1
            out = shard.attempt(dispatched_id, deferred(recipient("u@far.test")), headers=CONTENT)
        shard.advance(timedelta(minutes=1))
    assert attempts >= 4
    assert shard.now - START <= timedelta(minutes=62)
    assert kinds(out) == [QueueTombstone, DeliveryAttempted, FailedByRouter, Accepted, Bounced, Closed]
    assert isinstance(out[3], Accepted)
    assert isinstance(out[3].content, Inline)
    assert b"Status: 5.4.7" in out[3].content.data
    assert b"Greylisted" in out[3].content.data
    assert shard.ledger["failed"] == 1


def test_expiry_dsn_quotes_each_recipients_last_reply_as_our_diagnostic() -> None:
    shard = simulator(lifetime=timedelta(hours=1))
    shard.decide(accepted("a@far.test", "b@far.test", sender="alice@example.test"))
    shard.now += timedelta(hours=2)
    full = Deferred(address("a@far.test"), Reply(452, "4.2.2", "Mailbox full"), REMOTE)
    shard.attempt(next(iter(shard.dispatched)), full, deferred(recipient("b@far.test")), headers=CONTENT)
    (report,) = shard.dsns
    assert isinstance(report.content, Inline)
    parsed = message_from_bytes(report.content.data, policy=email_policy.default)
    blocks = list(parsed.get_payload(1).get_payload())[1:]  # type: ignore[union-attr, arg-type]
    assert [block["Final-Recipient"] for block in blocks] == ["rfc822; a@far.test", "rfc822; b@far.test"]
    for block, reply in zip(blocks, ("452 4.2.2 Mailbox full", str(DEFERRED_REPLY)), strict=True):
        assert block["Status"] == "5.4.7"
        assert block["Remote-MTA"] is None
        assert block["Diagnostic-Code"].startswith("X-Eilpost; 554 5.4.7 ")
        assert block["Diagnostic-Code"].endswith(f"{REMOTE} replied {reply}")


def test_many_failures_are_split_into_several_small_dsns() -> None:
    shard = simulator(recipients_per_delivery=120)
    names = [f"u{number}@far.test" for number in range(120)]
    shard.decide(accepted(*names, sender="alice@example.test"))
    long = Reply(550, "5.7.1", "No " * 330)
    shard.attempt(
        next(iter(shard.dispatched)),
        *(Failed(address(name), long, REMOTE) for name in names),
        headers=b"X: y\r\n" * 9000,
    )
    assert len({report.message.queue_id for report in shard.dsns}) == 3
    contents = b""
    for report in shard.dsns:
        assert isinstance(report.content, Inline)
        assert len(report.content.data) < 256 << 10
        contents += report.content.data
    assert all(f"Final-Recipient: rfc822; {name}\r\n".encode() in contents for name in names)
    assert shard.ledger["failed"] == 120


@pytest.mark.parametrize(
    ("notify", "reported"),
    [
        (None, True),
        (frozenset({Notify.NEVER}), False),
        (frozenset({Notify.SUCCESS}), False),
        (frozenset({Notify.FAILURE, Notify.DELAY}), True),
    ],
)
def test_dsn_obeys_notify(notify: frozenset[Notify] | None, reported: bool) -> None:
    shard = simulator()
    who = Recipient(address("gone@example.test"), None, notify)
    out = shard.decide(accepted(who, sender="alice@example.test"))
    assert bool(of_kind(Accepted, out)) == reported
    assert shard.ledger["failed"] == 1
    assert kinds(out)[-1] is Closed


def test_undeliverable_dsn_is_discarded() -> None:
    shard = simulator()
    out = shard.decide(accepted("gone@example.test", sender=None))
    assert kinds(out) == [MessageAccepted, FailedByRouter, Discarded, Closed]
    assert events(out)[2] == Discarded((address("gone@example.test"),))
    assert (shard.ledger["discarded"], shard.ledger["failed"], shard.open_by_ledger()) == (1, 0, 0)


def test_throttled_deliveries_start_in_order_when_slots_are_free() -> None:
    shard = simulator(limits=SiteLimits(deliveries_per_site=1))
    for name in "abc":
        shard.decide(accepted(f"{name}@far.test"))
        shard.now += timedelta(milliseconds=1)
    waiting = [entry.state for entry in shard.entries.values() if isinstance(entry.state, Waiting)]
    assert [state.cause for state in waiting] == [WaitCause.THROTTLED, WaitCause.THROTTLED]
    order = []
    for _ in "abc":
        (dispatched_id,) = shard.dispatched
        (who,) = shard.dispatched[dispatched_id].delivery.message.envelope.recipients
        order.append(who.address.local)
        shard.attempt(dispatched_id, delivered(who))
        shard.route_due()
    assert order == ["a", "b", "c"]


def test_clock_set_back_keeps_due_deliveries_in_turn() -> None:
    shard = simulator(limits=SiteLimits(deliveries_per_site=1))
    for name in "ab":
        shard.decide(accepted(f"{name}@far.test"))
        shard.route_due()  # from now on b is due and throttled
    shard.now -= timedelta(hours=1)
    (request,) = shard.dispatched.values()
    shard.attempt(request.delivery.id, delivered(recipient("a@far.test")))
    shard.route_due()
    (request,) = shard.dispatched.values()
    assert request.delivery.message.envelope.recipients == (recipient("b@far.test"),)


def test_unresolved_delivery_waits_until_dns_answers_or_it_expires() -> None:
    shard = RouterSimulator(policy())
    out = shard.decide(accepted("u@far.test"))
    (entry,) = of_kind(QueueEntry, out)
    assert entry.delivery.route == Unresolved("far.test")
    assert (entry.state.cause, entry.state.reason) == (WaitCause.UNRESOLVED, "DNS lookup of far.test MX timed out")
    assert isinstance(entry.content, Spooled)
    assert shard.dispatched == {}
    shard.answers = DnsAnswers({"far.test": DnsUnknown("DNS lookup of far.test MX failed: SERVFAIL")})
    shard.advance(timedelta(seconds=5))
    (entry,) = shard.entries.values()
    assert isinstance(entry.state, Waiting)
    assert entry.state.reason == "DNS lookup of far.test MX failed: SERVFAIL"
    shard.answers = FAR
    shard.advance(timedelta(seconds=5))
    (request,) = shard.dispatched.values()
    assert isinstance(request.delivery.route, ToMx)
    assert request.number == 1

    silent = RouterSimulator(policy(lifetime=timedelta(hours=1)))
    silent.decide(accepted("u@far.test", sender="alice@example.test"))
    for _ in range(20):
        silent.advance(timedelta(minutes=20))
    assert silent.entries == {}
    assert len(silent.dsns) == 1


def test_retry_uses_current_mx_records_and_relay() -> None:
    shard = RouterSimulator(policy(), answers=FAR)
    shard.decide(accepted("u@far.test"))
    shard.attempt(next(iter(shard.dispatched)), deferred(recipient("u@far.test")))
    shard.answers = DnsAnswers({"far.test": MxHosts(((10, "new.far.test"),))})
    shard.advance(timedelta(minutes=2))
    (request,) = shard.dispatched.values()
    assert request.delivery.route == ToMx("far.test", ((10, "new.far.test"),))
    assert set(site_loads(shard.queue)) == {"mx:new.far.test"}
    shard.attempt(request.delivery.id, deferred(recipient("u@far.test")))
    shard.policy = replace(shard.policy, relay=RELAY)  # a relay was configured in the meantime
    shard.advance(timedelta(hours=1))
    assert next(iter(shard.dispatched.values())).delivery.route == RELAY


def test_waiting_mail_follows_a_domain_that_becomes_local_or_remote() -> None:
    shard = RouterSimulator(policy(), answers=FAR)
    shard.decide(accepted("u@far.test"))
    shard.attempt(next(iter(shard.dispatched)), deferred(recipient("u@far.test")))
    shard.snapshot = snapshot(["u@far.test"], domains=[Domain("far.test", "default")])  # the domain became local
    shard.answers = DnsAnswers({"far.test": MxHosts(((10, "mx.example.test"),))})
    shard.advance(timedelta(minutes=2))
    (request,) = shard.dispatched.values()
    assert request.delivery.route == ToMailbox("u@far.test")
    shard.attempt(request.delivery.id, deferred(recipient("u@far.test")))
    shard.snapshot = snapshot(domains=[Domain("far.test", "default", relay_to=RELAY)])
    shard.advance(timedelta(hours=1))
    (request,) = shard.dispatched.values()
    assert request.delivery.route == RELAY
    shard.attempt(request.delivery.id, deferred(recipient("u@far.test")))
    shard.snapshot = snapshot(domains=[Domain("far.test", "default")])  # local, without that user
    shard.advance(timedelta(hours=1))
    assert next(iter(shard.dispatched.values())).delivery.route == RELAY


def test_delivery_stays_with_a_mailbox_that_also_has_an_alias() -> None:
    own = {"alice@example.test": ["alice@example.test", "u@far.test"]}
    shard = RouterSimulator(policy(), snapshot(["alice@example.test"], own), FAR)
    shard.decide(accepted("alice@example.test"))
    (mailbox,) = [request for request in shard.dispatched.values() if isinstance(request.delivery.route, ToMailbox)]
    shard.attempt(mailbox.delivery.id, deferred(recipient("alice@example.test")))
    shard.advance(timedelta(minutes=2))
    assert shard.dispatched[mailbox.delivery.id].delivery.route == ToMailbox("alice@example.test")


def test_decisions_are_deterministic() -> None:
    mail = accepted("gone@example.test", "u@far.test", sender="alice@example.test")
    assert simulator().decide(mail) == simulator().decide(mail)
    assert isinstance(of_kind(QueueEntry, simulator().decide(mail))[0].state, Active)
