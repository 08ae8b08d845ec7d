"""Tests of the router's metrics with a router on an in-memory log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mail.message import Spooled
from mail.record import Accepted, Attempted, Dispatched, QueueEntry, WaitCause, Waiting
from mail.route import ToRelay
from router import metrics
from router.accounting import BatchAccounting
from router.mail_queue import MailQueue
from tests.support.builders.routing import RouterSimulator, deferred, of_kind, policy
from tests.support.docs.metrics import value
from tests.support.servers.ports import wait_until
from tests.unit.router.test_quarantine import break_decide
from tests.unit.router.test_shard import RouterSetup, accepted_now, succeed

SMART = ToRelay("smart.test", 25)


@pytest.fixture(autouse=True)
def frequent_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "GAUGE_INTERVAL_SECONDS", 0.0)


async def test_ledger_does_not_drift_after_a_replay() -> None:
    setup = RouterSetup(relay=SMART, deliver=succeed)
    (entry,) = of_kind(QueueEntry, RouterSimulator(policy=policy(relay=SMART)).decide(accepted_now("u@far.test")))
    spooled_content = await setup.spool.put(b"x")
    await setup.log.append(
        QueueEntry(entry.delivery, Waiting(datetime.now(UTC), WaitCause.DEFERRED, "later"), spooled_content, 1)
    )
    async with setup.running():
        await wait_until(lambda: len(setup.dispatched) == 1)
        mail = accepted_now("alice@example.test", "v@far.test")
        await setup.log.append(mail)
        await wait_until(lambda: setup.is_closed(mail))
        assert value("ledger_drift_recipients") == 0


@pytest.mark.parametrize(("entry", "sign"), [("accepted", -1), ("delivered", 1)])
async def test_missing_ledger_entry_is_a_drift_until_the_shard_is_lost(
    monkeypatch: pytest.MonkeyPatch, entry: str, sign: int
) -> None:
    add_decision = BatchAccounting.add_decision

    def faulty(self: BatchAccounting, *arguments: object) -> None:
        add_decision(self, *arguments)  # type: ignore[arg-type]
        self.ledger.pop(entry, None)

    monkeypatch.setattr(BatchAccounting, "add_decision", faulty)
    setup = RouterSetup(deliver=succeed)
    async with setup.running():
        assert value("ledger_drift_recipients") == 0
        mail = accepted_now("alice@example.test", "u@far.test")
        await setup.log.append(mail)
        await wait_until(lambda: setup.is_closed(mail))
        await wait_until(lambda: value("ledger_drift_recipients") == sign * 2)
    assert value("ledger_drift_recipients") == 0


async def test_quarantined_delivery_is_counted_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = RouterSetup(deliver=succeed)
    bad = accepted_now("alice@example.test")
    break_decide(monkeypatch, bad.message.queue_id, kind=Accepted)
    await setup.log.append(bad)
    for _ in range(2):
        async with setup.running():
            await wait_until(lambda: value("quarantined_deliveries") == 1)
            await wait_until(lambda: value("queue_recipients", state="held") == 1)
            assert value("queue_runnable_recipients") == 0
            assert value("ledger_drift_recipients") == 0
        assert value("quarantined_deliveries") == 0


async def test_delivery_is_runnable_while_active_and_not_while_deferred() -> None:
    def later(request: Dispatched) -> Attempted:
        outcomes = tuple(map(deferred, request.delivery.message.envelope.recipients))
        return Attempted(request.delivery.id, request.number, outcomes, datetime.now(UTC), timedelta(0), spooled)

    setup = RouterSetup(relay=SMART)
    spooled: Spooled = await setup.spool.put(b"x")
    before = {name: value(name) for name in ("routed_messages_total", "routed_bytes_total")}
    consumed = value("consumed_records_total", topic="accepted")
    mail = accepted_now("u@far.test", "v@far.test")
    await setup.log.append(mail)
    async with setup.running():
        await wait_until(lambda: value("queue_runnable_recipients") == 2)
        since = value("queue_oldest_runnable_timestamp_seconds")
        assert abs(datetime.now(UTC).timestamp() - since) < 20
        assert value("routed_messages_total") - before["routed_messages_total"] == 1
        assert value("routed_bytes_total") - before["routed_bytes_total"] == mail.message.size_bytes
        assert value("consumed_records_total", topic="accepted") - consumed == 1
    assert value("queue_runnable_recipients") == 0
    assert value("queue_oldest_runnable_timestamp_seconds") == 0
    setup.deliver = later
    async with setup.running():  # delivery reads it again
        await wait_until(lambda: value("queue_recipients", state="deferred") == 2)
        assert value("queue_runnable_recipients") == 0


async def test_idle_shard_counts_as_routed() -> None:
    setup = RouterSetup()
    async with setup.running():
        await wait_until(lambda: value("shards_routed") == value("shards", role="router") > 0)
    assert value("shards_routed") == 0


def test_shard_that_finishes_no_batch_is_not_routed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(metrics, "monotonic", lambda: now)
    shards = metrics.Metrics()
    hanging, working, queue = 0, 1, MailQueue()
    for shard in (hanging, working):
        shards.shard_replayed(shard, queue)
    assert value("shards_routed") == 0
    for shard in (hanging, working):
        shards.add_batch(shard, BatchAccounting(), queue, 0.0)
    assert value("shards_routed") == 2
    now += metrics.ROUTED_SECONDS
    shards.add_batch(working, BatchAccounting(), queue, 0.0)
    assert value("shards_routed") == 1
    shards.shard_released(working)  # replayed and lost without a batch, as when it is fenced each time
    shards.shard_replayed(working, queue)
    assert value("shards_routed") == 0
