"""The loop around the decision, on a log in memory: failing commits, a failing spool, slow DNS, and a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from mail.directory.static import StaticDirectory
from mail.log import DeliveryShard, Entry, Joined, LogUnavailable, LogUnusable, RouterLog, RouterShard, ShardLost, Tend
from mail.log.memory import MemoryLog
from mail.message import Inline, Spooled, delivery_id
from mail.record import Accepted, Attempted, Closed, Delivery, Dispatched, Pending, Record, Waiting, Why
from mail.resolver.static import StaticResolver
from mail.route import ToRelay
from mail.service import ServiceError
from mail.settings import LogSettings, NodeSettings, RouterSettings
from mail.spool.memory import MemorySpool
from mail.telemetry import REGISTRY
from router.server import Router
from tests.support.routing import CONTENT, accepted, deferred, delivered, snapshot

WORLD = snapshot(["alice@example.test"])


@dataclass
class Setup:
    log: MemoryLog = field(default_factory=lambda: MemoryLog(LogSettings()))
    spool: MemorySpool = field(default_factory=MemorySpool)
    resolver: StaticResolver = field(default_factory=lambda: StaticResolver(mx={"far.test": [(10, "mx.far.test")]}))
    settings: RouterSettings = field(default_factory=RouterSettings)
    relay: ToRelay | None = None
    deliver: Callable[[Dispatched], Attempted] | None = None
    carried: list[Dispatched] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        router = Router(
            settings=self.settings,
            node=NodeSettings(hostname="mx.example.test"),
            relay=self.relay,
            log=self.log,
            spool=self.spool,
            directory=StaticDirectory(WORLD),
            resolver=self.resolver,
        )
        ready = asyncio.Event()
        tasks = [
            asyncio.create_task(router.run(ready.set, stop)),
            asyncio.create_task(self.log.deliver(self._tend_delivery, stop)),
        ]
        await ready.wait()
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _tend_delivery(self, shard: DeliveryShard) -> None:
        while True:
            try:
                entries = await shard.take(100)
            except ShardLost:
                return
            for entry in entries:
                self.carried.append(entry.record)
                if self.deliver is not None:
                    await shard.finish(entry, self.deliver(entry.record))

    async def lines(self) -> list[Pending]:
        return [line async for line in self.log.open_lines()]

    async def closed(self, mail: Accepted) -> bool:
        return any([isinstance(event.what, Closed) async for event in self.log.history(mail.message.queue_id)])


def router_on(log: RouterLog, setup: Setup) -> Router:
    return Router(
        settings=setup.settings,
        node=NodeSettings(),
        relay=None,
        log=log,
        spool=setup.spool,
        directory=StaticDirectory(WORLD),
        resolver=setup.resolver,
    )


def succeed(given: Dispatched) -> Attempted:
    outcomes = tuple(map(delivered, given.delivery.message.envelope.recipients))
    return Attempted(given.delivery.id, given.number, outcomes, datetime.now(UTC), timedelta(0))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.005)


def fresh(*to: str, **terms: object) -> Accepted:
    return accepted(*to, received=datetime.now(UTC), **terms)  # type: ignore[arg-type]


def counted(entry: str) -> float:
    return REGISTRY.get_sample_value("eilpost_ledger_recipients_total", {"entry": entry}) or 0.0


async def test_a_message_goes_through_and_the_ledger_is_published() -> None:
    setup = Setup(deliver=succeed)
    before = {entry: counted(entry) for entry in ("accepted", "delivered", "failed")}
    mail = fresh("alice@example.test", "u@far.test", "u@nowhere.test", sender="alice@example.test")
    async with setup.running():
        await setup.log.append(mail)
        await until(lambda: setup.closed(mail))
        await until(lambda: len(setup.carried) == 3)  # and the report about nowhere.test
        await until(lambda: counted("delivered") - before["delivered"] == 3)
    assert await setup.lines() == []
    assert {entry: counted(entry) - count for entry, count in before.items()} == {
        "accepted": 4,
        "delivered": 3,
        "failed": 1,
    }
    assert all(isinstance(given.content, Inline) for given in setup.carried)


async def test_the_log_tells_who_got_no_mail_and_why() -> None:
    setup = Setup(deliver=succeed)
    mail = fresh("u@nowhere.test", "u@far.test", sender="alice@example.test")
    unknown = fresh(*(f"u{number}@nowhere.test" for number in range(25)), sender=None)
    with structlog.testing.capture_logs() as lines:
        async with setup.running():
            for each in (mail, unknown):
                await setup.log.append(each)
                await until(lambda each=each: setup.closed(each))  # type: ignore[misc]
    told, silent = [line for line in lines if line["event"] == "bounced"]
    assert (told["to"], told["recipients"]) == (["u@nowhere.test"], 1)
    assert told["reply"].startswith("550 5.1.2")
    assert told["dsn"]
    assert (len(silent["to"]), silent["recipients"], silent["no_report"]) == (20, 25, "the sender is <>")
    assert not any(None in line.values() for line in lines)


async def test_a_commit_that_fails_is_made_again_from_a_fresh_replay() -> None:
    setup = Setup(relay=ToRelay("smart.test", 25), deliver=succeed)
    async with setup.running():
        first = fresh("u@far.test")
        await setup.log.append(first)
        await until(lambda: setup.closed(first))
        mails = [fresh("u@far.test") for _ in range(20)]
        for mail in mails:
            await setup.log.append(mail)
        setup.log.fail("the disk is away")  # before the loop had a chance to commit any
        await asyncio.sleep(0.3)
        assert len(setup.carried) == 1
        setup.log.fail(None)
        for mail in mails:
            await until(lambda mail=mail: setup.closed(mail))
    assert await setup.lines() == []
    ids = [given.delivery.id for given in setup.carried]
    assert len(ids) == len(set(ids)) == 21


async def test_slow_dns_holds_nobody_else_up_and_its_mail_goes_when_it_answers() -> None:
    resolver = StaticResolver(
        mx={"far.test": [(10, "mx.far.test")], "slow.test": [(10, "mx.slow.test")]}, slow={"slow.test": 0.6}
    )
    setup = Setup(resolver=resolver, deliver=succeed)
    slow, quick = fresh("u@slow.test"), fresh("u@far.test")
    async with setup.running():
        await setup.log.append(slow)
        await setup.log.append(quick)
        await until(lambda: setup.closed(quick))
        (line,) = await setup.lines()
        assert isinstance(line.state, Waiting)
        assert line.state.why is Why.RESOLVING
        assert isinstance(line.content, Spooled)
        resolver.slow.clear()
        await until(lambda: setup.closed(slow))
    assert [given.delivery.message.queue_id for given in setup.carried] == [
        quick.message.queue_id,
        slow.message.queue_id,
    ]


async def test_a_burst_beyond_the_window_is_spooled_and_all_of_it_delivered_in_the_end() -> None:
    setup = Setup(relay=ToRelay("smart.test", 25), settings=RouterSettings(window=10, batch=50), deliver=succeed)
    mails = [fresh("u@far.test") for _ in range(300)]
    for mail in mails:
        await setup.log.append(mail)
    async with setup.running():
        for mail in mails:
            await until(lambda mail=mail: setup.closed(mail))
    assert len({given.delivery.id for given in setup.carried}) == len(setup.carried) == 300
    assert await setup.lines() == []


async def test_what_is_due_goes_batch_after_batch_without_a_pause() -> None:
    setup = Setup(relay=ToRelay("smart.test", 25), settings=RouterSettings(batch=10))
    now, spooled = datetime.now(UTC), await setup.spool.keep(CONTENT)
    for _ in range(60):
        message = fresh("u@far.test").message
        one = Delivery(delivery_id(message.queue_id, 1), message, ToRelay("smart.test", 25))
        await setup.log.append(Pending(one, Waiting(now, Why.RETRY, "Greylisted"), spooled, 1))
    async with setup.running(), asyncio.timeout(3):  # a look a second would take five
        await until(lambda: len(setup.carried) == 60)


async def test_a_letter_to_many_sites_does_not_fill_the_log_with_copies() -> None:
    sites = {f"d{number}.test": [(10, f"mx.d{number}.test")] for number in range(100)}
    setup = Setup(resolver=StaticResolver(mx=sites), deliver=succeed)
    content = CONTENT + b"x" * 200_000
    mails = [fresh(*(f"u@{site}" for site in sites), content=Inline(content)), fresh("u@d1.test", "u@d2.test")]
    for mail in mails:
        await setup.log.append(mail)
    async with setup.running():
        for mail in mails:
            await until(lambda mail=mail: setup.closed(mail))
    assert len(setup.carried) == 102
    bodies = [given.content for given in setup.carried if given.delivery.message.queue_id == mails[0].message.queue_id]
    assert len(set(bodies)) == len(setup.spool.contents) == 1
    assert isinstance(bodies[0], Spooled)
    assert await setup.spool.read(bodies[0]) == content
    assert sum(isinstance(given.content, Inline) for given in setup.carried) == 2  # few copies still ride along


async def test_another_owner_goes_on_where_the_first_stopped() -> None:
    def postpone(given: Dispatched) -> Attempted:
        outcomes = tuple(map(deferred, given.delivery.message.envelope.recipients))
        spooled = given.content if isinstance(given.content, Spooled) else Spooled("d", len(CONTENT), "0" * 32)
        return Attempted(given.delivery.id, given.number, outcomes, datetime.now(UTC), timedelta(0), spooled, CONTENT)

    setup = Setup(
        relay=ToRelay("smart.test", 25), deliver=postpone, settings=RouterSettings(retry=[timedelta(seconds=1)])
    )
    mail = fresh("u@far.test")
    async with setup.running():
        await setup.log.append(mail)
        await until(lambda: len(setup.carried) == 1)

        async def waits() -> bool:
            return any(isinstance(line.state, Waiting) for line in await setup.lines())

        await until(waits)
    setup.deliver = succeed
    async with setup.running():
        await until(lambda: setup.closed(mail))
    assert setup.carried[-1].number == len(setup.carried) >= 2


async def test_a_report_about_spooled_content_quotes_its_header() -> None:
    setup = Setup(deliver=succeed)
    spooled = await setup.spool.keep(CONTENT + b"x" * 300_000)
    mail = fresh("u@nowhere.test", sender="alice@example.test", content=spooled)
    async with setup.running():
        await setup.log.append(mail)
        await until(lambda: setup.carried)
    content = setup.carried[0].content
    assert isinstance(content, Inline)
    assert b"Subject: hello" in content.data
    assert b"xxx" not in content.data


async def test_a_failed_rewind_is_repeated_before_anything_is_taken() -> None:
    """A shard whose rewind fails once: no batch may be taken from the wrong place meanwhile."""
    calls: list[str] = []

    class Shard:
        number = 0
        failures = 2

        async def replay(self) -> AsyncIterator[Sequence[Pending]]:
            calls.append("replay")
            for batch in ():
                yield batch

        async def take(self, limit: int, wait: timedelta) -> Sequence[Entry[Accepted] | Entry[Attempted]]:
            calls.append("take")
            if calls.count("take") > 1:
                raise ShardLost
            return [Entry("accepted", 0, 1, fresh("alice@example.test"))]

        async def commit(self, outputs: Sequence[Record], consumed: object) -> None:
            calls.append("commit")
            raise LogUnavailable("no quorum")

        async def rewind(self) -> None:
            calls.append("rewind")
            self.failures -= 1
            if self.failures:
                raise LogUnavailable("no quorum")

    class Log:
        async def route(self, tend: Tend, stop: asyncio.Event, joined: Joined | None = None) -> None:
            assert joined is not None
            joined()
            shard: RouterShard = Shard()
            await tend(shard)

    setup = Setup()
    router = router_on(Log(), setup)
    await router.run(lambda: None, asyncio.Event())
    assert calls == ["replay", "take", "take", "commit", "rewind", "rewind", "replay", "take"]


async def test_what_is_no_longer_ours_is_no_longer_counted() -> None:
    def in_hand() -> float | None:
        return REGISTRY.get_sample_value("eilpost_queue_recipients", {"state": "active"})

    setup = Setup(relay=ToRelay("smart.test", 25))
    await setup.log.append(fresh("u@far.test"))
    async with setup.running():
        await until(lambda: in_hand() == 1)
    assert in_hand() == 0


async def test_a_log_that_cannot_be_read_ends_the_role_in_one_line() -> None:
    class Log:
        async def route(self, tend: Tend, stop: asyncio.Event, joined: Joined | None = None) -> None:
            assert joined is not None
            joined()
            raise LogUnusable("var/log.db: frame version 9 is newer than this program")

    setup = Setup()
    router = router_on(Log(), setup)
    with pytest.raises(ServiceError, match="frame version 9"):
        await router.run(lambda: None, asyncio.Event())
