"""Tests of content placement while the spool is full, fails or hangs."""

from __future__ import annotations

import asyncio

import pytest

from mail.message import Inline, Spooled
from mail.record import Dispatched, QueueEntry, WaitCause, Waiting
from mail.route import ToRelay
from mail.settings_roles import RouterSettings
from mail.spool import SpoolUnavailable
from mail.spool.memory import MemorySpool
from router.content_placement import ContentPlacement
from router.decide import decide
from router.mail_queue import MailQueue
from router.routing_context import RoutingContext
from tests.support.builders.routing import CONTENT, START, RouterSimulator, accepted, of_kind, policy, snapshot
from tests.support.servers.ports import wait_until
from tests.unit.router.test_shard import RouterSetup, accepted_now, succeed

SMART = ToRelay("smart.test", 25)


class BrokenSpool(MemorySpool):
    """A spool that fails, or hangs with `hangs`, until `repaired`."""

    works = False
    hangs = False
    bug = False
    calls = 0

    async def put(self, content: bytes) -> Spooled:
        self.calls += 1
        if self.works:
            return await super().put(content)
        if self.hangs:
            await asyncio.Event().wait()
        if self.bug:
            raise ZeroDivisionError
        raise SpoolUnavailable("disk full")


@pytest.mark.parametrize("trouble", ["full", "hangs", "bug"])
async def test_waiting_message_with_failing_spool_does_not_block_others(
    monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr("router.content_placement.SPOOL_TIMEOUT_SECONDS", 0.05)
    spool = BrokenSpool()
    spool.hangs, spool.bug = trouble == "hangs", trouble == "bug"
    setup = RouterSetup(spool=spool, relay=SMART, settings=RouterSettings(max_active_deliveries_per_site=5))
    for _ in range(7):
        await setup.log.append(accepted_now("u@far.test"))
    for _ in range(5):
        await setup.log.append(accepted_now("alice@example.test"))
    async with setup.running():
        await wait_until(lambda: len(setup.dispatched) == 10)
        waiting = [entry for entry in await setup.entries() if isinstance(entry.state, Waiting)]
    assert [entry.content for entry in waiting] == [Inline(CONTENT)] * 2
    setup.deliver = succeed
    setup.dispatched.clear()
    async with setup.running():  # after a restart, with the spool still failing
        await wait_until(lambda: len(setup.dispatched) == 12)
        await wait_until(_empty(setup))
    assert {given.content for given in setup.dispatched} == {Inline(CONTENT)}


def _empty(setup: RouterSetup):  # type: ignore[no-untyped-def]
    async def empty() -> bool:
        return not await setup.entries()

    return empty


def test_active_entry_has_no_inline_content() -> None:
    """The content is stored in Dispatched only, as for a new message."""
    simulator = RouterSimulator(policy=policy(relay=SMART), snapshot=snapshot())
    record = accepted("u@far.test")
    context = RoutingContext(simulator.policy, simulator.snapshot)
    (entry,) = of_kind(QueueEntry, list(decide(simulator.queue, record, context, START)))
    waiting_entry = QueueEntry(entry.delivery, Waiting(START, WaitCause.THROTTLED, "full"), record.content)
    simulator.queue.apply(waiting_entry)
    assert simulator.queue.inline_bytes == len(CONTENT)
    out = simulator.route_due()
    assert [entry.content for entry in of_kind(QueueEntry, out)] == [None]
    assert [given.content for given in of_kind(Dispatched, out)] == [Inline(CONTENT)]
    assert simulator.queue.inline_bytes == 0


async def test_failed_spool_is_not_called_during_back_off() -> None:
    spool, queue = BrokenSpool(), MailQueue()
    placement = ContentPlacement(spool)
    simulator = RouterSimulator(policy=policy(relay=SMART), snapshot=snapshot())
    for _ in range(3):
        record = accepted("u@far.test")
        (entry,) = of_kind(
            QueueEntry,
            list(decide(simulator.queue, record, RoutingContext(simulator.policy, simulator.snapshot), START)),
        )
        waiting_entry = QueueEntry(entry.delivery, Waiting(START, WaitCause.THROTTLED, "full"), record.content)
        queue.apply(waiting_entry)
        outputs = [waiting_entry]
        await placement.offload(outputs, queue)  # type: ignore[arg-type]
        assert outputs == [waiting_entry]
    assert spool.calls == 1


async def test_inline_content_in_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.content_placement.INLINE_BYTES_MAX", 1000)
    monkeypatch.setattr("router.content_placement.SPOOL_BACKOFF_SECONDS", 0.05)
    spool = BrokenSpool()
    setup = RouterSetup(
        spool=spool, relay=SMART, settings=RouterSettings(max_active_deliveries_per_site=1, max_batch_records=1)
    )
    mails = [accepted_now("u@far.test", content=Inline(CONTENT + b"x" * 400)) for _ in range(6)]
    for mail in mails:
        await setup.log.append(mail)
    async with setup.running():
        await wait_until(lambda: spool.calls >= 4)  # tried again and again
        waiting_entry = [entry for entry in await setup.entries() if isinstance(entry.content, Inline)]
        assert len(waiting_entry) == 2
        spool.works = True
        await wait_until(_all(setup, 6))
    assert sum(isinstance(entry.content, Spooled) for entry in await setup.entries()) >= 3


def _all(setup: RouterSetup, count: int):  # type: ignore[no-untyped-def]
    async def there() -> bool:
        return len(await setup.entries()) == count

    return there
