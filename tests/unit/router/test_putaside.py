"""A bug that one fact brings out stops neither the shard nor any other message, and loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from eilpost.story import tell
from mail.message import Spooled
from mail.outcome import Delivered
from mail.record import Accepted, Attempted, Dispatched, Event, Pending, Record, Settled, Tried, Waiting, Why
from mail.route import ToRelay
from mail.settings import RouterSettings
from router.decide import Due, Fact, decide
from router.mailqueue import MailQueue
from router.putaside import put_aside
from router.world import World
from tests.support.routing import CONTENT, START, Desk, accepted, deferred, delivered, only, policy, snapshot
from tests.unit.router.test_shard import Setup, fresh, succeed, until

SMART = ToRelay("smart.test", 25)


def breaks_at(monkeypatch: pytest.MonkeyPatch, *poison: str, kind: type) -> None:
    def fragile(queue: MailQueue, fact: Fact, world: World, now: datetime) -> Iterator[Record]:
        name = fact.message.queue_id if isinstance(fact, Accepted) else fact.delivery_id
        for number, record in enumerate(decide(queue, fact, world, now)):
            if isinstance(fact, kind) and name.startswith(poison) and number == 1:
                raise ZeroDivisionError("after half of the work")
            yield record

    monkeypatch.setattr("router.shard.decide", fragile)


async def test_a_new_message_that_breaks_the_decision_is_held_and_the_others_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = Setup(deliver=succeed, settings=RouterSettings(batch=10))
    mails = [fresh("alice@example.test") for _ in range(30)]
    bad = mails[4]
    breaks_at(monkeypatch, bad.message.queue_id, kind=Accepted)
    for mail in mails:
        await setup.log.append(mail)
    with structlog.testing.capture_logs() as logged:
        async with setup.running():
            for mail in mails:
                if mail is not bad:
                    await until(lambda mail=mail: setup.closed(mail))  # type: ignore[misc]
    (line,) = await setup.lines()
    assert line.delivery.message == bad.message
    assert isinstance(line.state, Waiting)
    assert line.state.why is Why.HOLD
    assert "ZeroDivisionError" in line.state.reason
    assert isinstance(line.content, Spooled)
    assert await setup.spool.read(line.content) == CONTENT
    assert (await setup.log.backlog()).accepted == 0
    assert [entry["facts"] for entry in logged if entry["event"] == "put aside"] == [[bad.message.queue_id]]
    story = tell(bad.message.queue_id, [event async for event in setup.log.history(bad.message.queue_id)], [line], [])
    assert story is not None
    assert len(setup.carried) == 29
    async with setup.running():  # nothing goes wrong again at the next start
        mail = fresh("alice@example.test")
        await setup.log.append(mail)
        await until(lambda: setup.closed(mail))


async def test_a_report_that_breaks_the_decision_counts_as_a_deferral(monkeypatch: pytest.MonkeyPatch) -> None:
    def postpone(given: Dispatched) -> Attempted:
        first, second = given.delivery.message.envelope.recipients
        outcomes = (delivered(first), deferred(second))
        return Attempted(given.delivery.id, 1, outcomes, datetime.now(UTC), timedelta(0), spooled)

    setup = Setup(relay=SMART, deliver=postpone)
    spooled = await setup.spool.keep(CONTENT)
    mail = fresh("a@far.test", "b@far.test")
    breaks_at(monkeypatch, mail.message.queue_id, kind=Attempted)
    await setup.log.append(mail)

    async def waits() -> bool:
        return any(isinstance(line.state, Waiting) for line in await setup.lines())

    async with setup.running():
        await until(waits)
    (line,) = await setup.lines()
    assert (line.state.why, line.attempts, line.content) == (Why.RETRY, 1, spooled)  # type: ignore[union-attr]
    assert [str(one.address) for one in line.delivery.message.envelope.recipients] == ["b@far.test"]
    assert (await setup.log.backlog()).attempted == 0


async def test_a_waiting_message_that_breaks_the_decision_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(relay=SMART, deliver=succeed)
    desk = Desk(policy=policy(relay=SMART))
    spooled = await setup.spool.keep(CONTENT)
    lines = []
    for _ in range(5):
        (line,) = only(Pending, desk.decide(fresh("a@far.test")))
        lines.append(Pending(line.delivery, Waiting(datetime.now(UTC), Why.RETRY, "later"), spooled, 1))
        await setup.log.append(lines[-1])
    breaks_at(monkeypatch, lines[2].delivery.id, kind=Due)

    async def one_left() -> bool:
        return len(await setup.lines()) == 1

    async with setup.running():
        await until(one_left)
    (left,) = await setup.lines()
    assert left.delivery.id == lines[2].delivery.id
    assert isinstance(left.state, Waiting)
    assert left.state.why is Why.HOLD


async def test_a_bug_in_telling_is_no_bug_in_routing(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("router.shard._log_history", wrong)
    setup = Setup(deliver=succeed)
    mail = fresh("alice@example.test")
    async with setup.running():
        await setup.log.append(mail)
        await until(lambda: setup.closed(mail))
        await asyncio.sleep(0.05)
    assert len(setup.carried) == 1


def test_a_report_without_content_is_settled_or_held() -> None:
    desk = Desk(policy=policy(relay=SMART), snapshot=snapshot())
    first, second = desk.decide(accepted("a@far.test")), desk.decide(accepted("b@far.test"))
    for out, outcome, wanted in ((first, delivered, Settled), (second, deferred, Pending)):
        (given,) = only(Dispatched, out)
        outcomes = tuple(map(outcome, given.delivery.message.envelope.recipients))
        fact = Attempted(given.delivery.id, 1, outcomes, START, timedelta(0))
        records = []
        for record in put_aside(desk.queue, fact, "a bug", desk.policy, START):
            desk.queue.apply(record)
            records.append(record)
        assert isinstance(records[0], wanted)
        assert any(isinstance(record, Event) and isinstance(record.what, Tried) for record in records)
    (held,) = desk.queue.lines()
    assert isinstance(held.state, Waiting)
    assert held.state.why is Why.HOLD
    assert not isinstance(outcomes[0], Delivered)
