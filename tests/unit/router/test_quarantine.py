"""Tests of the quarantine: a decision that raises an exception stops neither the shard nor other messages."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from eilpost.timeline import build_timeline
from mail.message import Spooled
from mail.outcome import Delivered
from mail.record import (
    Accepted,
    Attempted,
    DeliveryAttempted,
    Dispatched,
    Event,
    QueueEntry,
    QueueTombstone,
    Record,
    WaitCause,
    Waiting,
)
from mail.route import ToRelay
from mail.settings_roles import RouterSettings
from router.decide import Due, Trigger, decide
from router.mail_queue import MailQueue
from router.quarantine import quarantine
from router.routing_context import RoutingContext
from tests.support.builders.routing import (
    CONTENT,
    START,
    RouterSimulator,
    accepted,
    deferred,
    delivered,
    of_kind,
    policy,
    snapshot,
)
from tests.support.servers.ports import wait_until
from tests.unit.router.test_shard import RouterSetup, accepted_now, succeed

SMART = ToRelay("smart.test", 25)
HELD_EVENT = "quarantined, delivery held"


def break_decide(monkeypatch: pytest.MonkeyPatch, *poison: str, kind: type) -> None:
    def raising(queue: MailQueue, trigger: Trigger, context: RoutingContext, now: datetime) -> Iterator[Record]:
        name = trigger.message.queue_id if isinstance(trigger, Accepted) else trigger.delivery_id
        for number, record in enumerate(decide(queue, trigger, context, now)):
            if isinstance(trigger, kind) and name.startswith(poison) and number == 1:
                raise ZeroDivisionError("after half of the work")
            yield record

    monkeypatch.setattr("router.shard.decide", raising)


async def test_new_message_that_raises_is_held_and_others_are_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = RouterSetup(deliver=succeed, settings=RouterSettings(max_batch_records=10))
    mails = [accepted_now("alice@example.test") for _ in range(30)]
    bad = mails[4]
    break_decide(monkeypatch, bad.message.queue_id, kind=Accepted)
    for mail in mails:
        await setup.log.append(mail)
    with structlog.testing.capture_logs() as logged:
        async with setup.running():
            for mail in mails:
                if mail is not bad:
                    await wait_until(lambda mail=mail: setup.is_closed(mail))  # type: ignore[misc]
    (entry,) = await setup.entries()
    assert entry.delivery.message == bad.message
    assert isinstance(entry.state, Waiting)
    assert entry.state.cause is WaitCause.HELD
    assert "ZeroDivisionError" in entry.state.reason
    assert isinstance(entry.content, Spooled)
    assert await setup.spool.read(entry.content) == CONTENT
    assert (await setup.log.backlog()).accepted == 0
    assert [entry["queue_id"] for entry in logged if entry["event"] == HELD_EVENT] == [bad.message.queue_id]
    timeline = build_timeline(
        bad.message.queue_id, [event async for event in setup.log.history(bad.message.queue_id)], [entry], []
    )
    assert timeline is not None
    assert len(setup.dispatched) == 29
    async with setup.running():  # the next start raises nothing
        mail = accepted_now("alice@example.test")
        await setup.log.append(mail)
        await wait_until(lambda: setup.is_closed(mail))


async def test_report_that_raises_counts_as_a_deferral(monkeypatch: pytest.MonkeyPatch) -> None:
    def postpone(request: Dispatched) -> Attempted:
        first, second = request.delivery.message.envelope.recipients
        outcomes = (delivered(first), deferred(second))
        return Attempted(request.delivery.id, 1, outcomes, datetime.now(UTC), timedelta(0), spooled)

    setup = RouterSetup(relay=SMART, deliver=postpone)
    spooled = await setup.spool.put(CONTENT)
    mail = accepted_now("a@far.test", "b@far.test")
    break_decide(monkeypatch, mail.message.queue_id, kind=Attempted)
    await setup.log.append(mail)

    async def waits() -> bool:
        return any(isinstance(entry.state, Waiting) for entry in await setup.entries())

    with structlog.testing.capture_logs() as logged:
        async with setup.running():
            await wait_until(waits)
    events = [line["event"] for line in logged if line.get("delivery_id") and line["log_level"] == "error"]
    assert events == ["attempt report not processed, undelivered recipients deferred"]
    (entry,) = await setup.entries()
    assert (entry.state.cause, entry.attempts, entry.content) == (WaitCause.DEFERRED, 1, spooled)  # type: ignore[union-attr]
    assert [str(recipient.address) for recipient in entry.delivery.message.envelope.recipients] == ["b@far.test"]
    assert (await setup.log.backlog()).attempted == 0


async def test_waiting_message_that_raises_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = RouterSetup(relay=SMART, deliver=succeed)
    simulator = RouterSimulator(policy=policy(relay=SMART))
    spooled = await setup.spool.put(CONTENT)
    entries = []
    for _ in range(5):
        (entry,) = of_kind(QueueEntry, simulator.decide(accepted_now("a@far.test")))
        entries.append(QueueEntry(entry.delivery, Waiting(datetime.now(UTC), WaitCause.DEFERRED, "later"), spooled, 1))
        await setup.log.append(entries[-1])
    break_decide(monkeypatch, entries[2].delivery.id, kind=Due)

    async def one_left() -> bool:
        return len(await setup.entries()) == 1

    async with setup.running():
        await wait_until(one_left)
    (left,) = await setup.entries()
    assert left.delivery.id == entries[2].delivery.id
    assert isinstance(left.state, Waiting)
    assert left.state.cause is WaitCause.HELD


async def test_bug_in_metrics_or_logging_does_not_repeat_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("router.shard._log_events", raising)
    setup = RouterSetup(deliver=succeed)
    first, second = accepted_now("alice@example.test"), accepted_now("alice@example.test")
    async with setup.running():
        await setup.log.append(first)
        await wait_until(lambda: setup.is_closed(first))
        await setup.log.append(second)  # a repeated batch would be dispatched before it
        await wait_until(lambda: setup.is_closed(second))
    assert len(setup.dispatched) == 2


def test_quarantined_report_without_content_is_settled_or_held() -> None:
    simulator = RouterSimulator(policy=policy(relay=SMART), snapshot=snapshot())
    first, second = simulator.decide(accepted("a@far.test")), simulator.decide(accepted("b@far.test"))
    for out, outcome, wanted in ((first, delivered, QueueTombstone), (second, deferred, QueueEntry)):
        (request,) = of_kind(Dispatched, out)
        outcomes = tuple(map(outcome, request.delivery.message.envelope.recipients))
        trigger = Attempted(request.delivery.id, 1, outcomes, START, timedelta(0))
        records = []
        for record in quarantine(simulator.queue, trigger, "a bug", simulator.policy, START):
            simulator.queue.apply(record)
            records.append(record)
        assert isinstance(records[0], wanted)
        assert any(isinstance(record, Event) and isinstance(record.detail, DeliveryAttempted) for record in records)
    (held_entry,) = simulator.queue.entries()
    assert isinstance(held_entry.state, Waiting)
    assert held_entry.state.cause is WaitCause.HELD
    assert not isinstance(outcomes[0], Delivered)
