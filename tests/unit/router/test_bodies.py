"""A spool that is full, fails or hangs holds up nobody's mail, and loses none."""

from __future__ import annotations

import asyncio

import pytest

from mail.message import Inline, Spooled
from mail.record import Dispatched, Pending, Waiting, Why
from mail.route import ToRelay
from mail.settings import RouterSettings
from mail.spool import SpoolUnavailable
from mail.spool.memory import MemorySpool
from router.bodies import Bodies
from router.decide import decide
from router.mailqueue import MailQueue
from router.world import World
from tests.support.routing import CONTENT, START, Desk, accepted, only, policy, snapshot
from tests.unit.router.test_shard import Setup, fresh, succeed, until

SMART = ToRelay("smart.test", 25)


class Broken(MemorySpool):
    """Until `mended`; `hangs` instead of failing."""

    mended = False
    hangs = False
    bug = False
    asked = 0

    async def keep(self, content: bytes) -> Spooled:
        self.asked += 1
        if self.mended:
            return await super().keep(content)
        if self.hangs:
            await asyncio.Event().wait()
        if self.bug:
            raise ZeroDivisionError
        raise SpoolUnavailable("disk full")


@pytest.mark.parametrize("trouble", ["full", "hangs", "bug"])
async def test_a_message_that_must_wait_holds_up_no_other(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    monkeypatch.setattr("router.bodies.PATIENCE_SECONDS", 0.05)
    spool = Broken()
    spool.hangs, spool.bug = trouble == "hangs", trouble == "bug"
    setup = Setup(spool=spool, relay=SMART, settings=RouterSettings(window=5))
    for _ in range(7):
        await setup.log.append(fresh("u@far.test"))
    for _ in range(5):
        await setup.log.append(fresh("alice@example.test"))
    async with setup.running():
        await until(lambda: len(setup.carried) == 10)
        waiting = [line for line in await setup.lines() if isinstance(line.state, Waiting)]
    assert [line.content for line in waiting] == [Inline(CONTENT)] * 2
    setup.deliver = succeed
    setup.carried.clear()
    async with setup.running():  # after a restart, the spool still broken
        await until(lambda: len(setup.carried) == 12)
        await until(_empty(setup))
    assert {given.content for given in setup.carried} == {Inline(CONTENT)}


def _empty(setup: Setup):  # type: ignore[no-untyped-def]
    async def empty() -> bool:
        return not await setup.lines()

    return empty


def test_a_line_lets_go_of_its_content_when_it_is_in_hand() -> None:
    """The body rides in Dispatched alone, as that of a new message does."""
    desk = Desk(policy=policy(relay=SMART), snapshot=snapshot())
    fact = accepted("u@far.test")
    world = World(desk.policy, desk.snapshot)
    (line,) = only(Pending, list(decide(desk.queue, fact, world, START)))
    held = Pending(line.delivery, Waiting(START, Why.WINDOW, "full"), fact.content)
    desk.queue.apply(held)
    assert desk.queue.inline_bytes == len(CONTENT)
    out = desk.tick()
    assert [line.content for line in only(Pending, out)] == [None]
    assert [given.content for given in only(Dispatched, out)] == [Inline(CONTENT)]
    assert desk.queue.inline_bytes == 0


async def test_a_spool_that_failed_is_left_alone_for_a_while() -> None:
    spool, queue = Broken(), MailQueue()
    bodies = Bodies(spool)
    desk = Desk(policy=policy(relay=SMART), snapshot=snapshot())
    for _ in range(3):
        fact = accepted("u@far.test")
        (line,) = only(Pending, list(decide(desk.queue, fact, World(desk.policy, desk.snapshot), START)))
        held = Pending(line.delivery, Waiting(START, Why.WINDOW, "full"), fact.content)
        queue.apply(held)
        outputs = [held]
        await bodies.settle(outputs, queue)  # type: ignore[arg-type]
        assert outputs == [held]
    assert spool.asked == 1


async def test_what_stays_in_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.bodies.INLINE_BYTES", 1000)
    monkeypatch.setattr("router.bodies.PAUSE_SECONDS", 0.05)
    spool = Broken()
    setup = Setup(spool=spool, relay=SMART, settings=RouterSettings(window=1, batch=1))
    mails = [fresh("u@far.test", content=Inline(CONTENT + b"x" * 400)) for _ in range(6)]
    for mail in mails:
        await setup.log.append(mail)
    async with setup.running():
        await asyncio.sleep(0.5)
        held = [line for line in await setup.lines() if isinstance(line.content, Inline)]
        assert len(held) == 2
        spool.mended = True
        await until(_all(setup, 6))
    assert sum(isinstance(line.content, Spooled) for line in await setup.lines()) >= 3


def _all(setup: Setup, count: int):  # type: ignore[no-untyped-def]
    async def there() -> bool:
        return len(await setup.lines()) == count

    return there
