"""Tests of the shard loop on an in-memory log: failing commits, a failing spool, slow DNS, and a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from mail.log import (
    DeliveryShard,
    Entry,
    Input,
    LogUnavailable,
    LogUnusable,
    OnReady,
    RouterLog,
    RouterShard,
    RouterShardProcessor,
    ShardLost,
)
from mail.log.memory import MemoryLog
from mail.message import Inline, Spooled, delivery_id
from mail.record import Accepted, Attempted, Closed, Delivery, Dispatched, QueueEntry, Record, WaitCause, Waiting
from mail.route import ToRelay
from mail.service import ServiceError
from mail.settings import LogSettings, NodeSettings
from mail.settings_roles import RouterSettings
from mail.spool.memory import MemorySpool
from mail.telemetry import REGISTRY
from router.server import Router
from tests.support.builders.routing import CONTENT, accepted, deferred, delivered, snapshot
from tests.support.servers.ports import wait_until
from tests.support.servers.static_directory import StaticDirectory
from tests.support.servers.static_resolver import StaticResolver

SNAPSHOT = snapshot(["alice@example.test"])


@dataclass
class RouterSetup:
    log: MemoryLog = field(default_factory=lambda: MemoryLog(LogSettings()))
    spool: MemorySpool = field(default_factory=MemorySpool)
    resolver: StaticResolver = field(default_factory=lambda: StaticResolver(mx={"far.test": [(10, "mx.far.test")]}))
    settings: RouterSettings = field(default_factory=RouterSettings)
    relay: ToRelay | None = None
    deliver: Callable[[Dispatched], Attempted] | None = None
    dispatched: list[Dispatched] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        router = Router(
            settings=self.settings,
            node=NodeSettings(hostname="mx.example.test"),
            relay=self.relay,
            log=self.log,
            spool=self.spool,
            directory=StaticDirectory(SNAPSHOT),
            resolver=self.resolver,
        )
        ready = asyncio.Event()
        tasks = [
            asyncio.create_task(router.run(ready.set, stop)),
            asyncio.create_task(self.log.own_delivery_shards(self._process_delivery, stop)),
        ]
        await ready.wait()
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _process_delivery(self, shard: DeliveryShard) -> None:
        while True:
            try:
                entries = await shard.read(100)
            except ShardLost:
                return
            for entry in entries:
                self.dispatched.append(entry.record)
                if self.deliver is not None:
                    await shard.finish(entry, self.deliver(entry.record))

    async def entries(self) -> list[QueueEntry]:
        return [entry async for entry in self.log.queue_entries()]

    async def is_closed(self, mail: Accepted) -> bool:
        return any([isinstance(event.detail, Closed) async for event in self.log.history(mail.message.queue_id)])


def router_on(log: RouterLog, setup: RouterSetup) -> Router:
    return Router(
        settings=setup.settings,
        node=NodeSettings(),
        relay=None,
        log=log,
        spool=setup.spool,
        directory=StaticDirectory(SNAPSHOT),
        resolver=setup.resolver,
    )


def succeed(request: Dispatched) -> Attempted:
    outcomes = tuple(map(delivered, request.delivery.message.envelope.recipients))
    return Attempted(request.delivery.id, request.number, outcomes, datetime.now(UTC), timedelta(0))


def accepted_now(*to: str, **fields: object) -> Accepted:
    return accepted(*to, received=datetime.now(UTC), **fields)  # type: ignore[arg-type]


def counted(entry: str) -> float:
    return REGISTRY.get_sample_value("eilpost_ledger_recipients_total", {"entry": entry}) or 0.0


async def test_message_is_delivered_and_the_ledger_is_published() -> None:
    setup = RouterSetup(deliver=succeed)
    before = {entry: counted(entry) for entry in ("accepted", "delivered", "failed")}
    mail = accepted_now("alice@example.test", "u@far.test", "u@nowhere.test", sender="alice@example.test")
    async with setup.running():
        await setup.log.append(mail)
        await wait_until(lambda: setup.is_closed(mail))
        await wait_until(lambda: len(setup.dispatched) == 3)  # including the DSN about nowhere.test
        await wait_until(lambda: counted("delivered") - before["delivered"] == 3)
    assert await setup.entries() == []
    assert {entry: counted(entry) - count for entry, count in before.items()} == {
        "accepted": 4,
        "delivered": 3,
        "failed": 1,
    }
    assert all(isinstance(request.content, Inline) for request in setup.dispatched)


async def test_log_names_bounced_and_discarded_recipients() -> None:
    setup = RouterSetup(deliver=succeed)
    mail = accepted_now("u@nowhere.test", "u@far.test", sender="alice@example.test")
    unknown = accepted_now(*(f"u{number}@nowhere.test" for number in range(25)), sender=None)
    with structlog.testing.capture_logs() as lines:
        async with setup.running():
            for each in (mail, unknown):
                await setup.log.append(each)
                await wait_until(lambda each=each: setup.is_closed(each))  # type: ignore[misc]
    (reported,) = [line for line in lines if line["event"] == "bounced"]
    (discarded,) = [line for line in lines if line["event"] == "discarded"]
    assert (reported["to"], reported["recipients"]) == (["u@nowhere.test"], 1)
    assert reported["reply"].startswith("550 5.1.2")
    assert reported["dsn"]
    assert (len(discarded["to"]), discarded["recipients"], discarded["reason"]) == (20, 25, "null reverse-path")
    assert not any(None in line.values() for line in lines)


async def test_failed_commit_is_repeated_after_a_replay() -> None:
    setup = RouterSetup(relay=ToRelay("smart.test", 25), deliver=succeed)
    async with setup.running():
        first = accepted_now("u@far.test")
        await setup.log.append(first)
        await wait_until(lambda: setup.is_closed(first))
        mails = [accepted_now("u@far.test") for _ in range(20)]
        for mail in mails:
            await setup.log.append(mail)
        with structlog.testing.capture_logs() as lines:
            setup.log.fail("the disk is away")  # before the loop can commit
            await wait_until(lambda: [line["event"] for line in lines].count("routing paused") == 2)
        assert len(setup.dispatched) == 1
        setup.log.fail(None)
        for mail in mails:
            await wait_until(lambda mail=mail: setup.is_closed(mail))
    assert await setup.entries() == []
    ids = [request.delivery.id for request in setup.dispatched]
    assert len(ids) == len(set(ids)) == 21


async def test_slow_dns_does_not_block_other_mail() -> None:
    resolver = StaticResolver(
        mx={"far.test": [(10, "mx.far.test")], "slow.test": [(10, "mx.slow.test")]}, slow={"slow.test": 0.6}
    )
    setup = RouterSetup(resolver=resolver, deliver=succeed)
    slow, quick = accepted_now("u@slow.test"), accepted_now("u@far.test")
    async with setup.running():
        await setup.log.append(slow)
        await setup.log.append(quick)
        await wait_until(lambda: setup.is_closed(quick))
        (entry,) = await setup.entries()
        assert isinstance(entry.state, Waiting)
        assert entry.state.cause is WaitCause.UNRESOLVED
        assert isinstance(entry.content, Spooled)
        resolver.slow.clear()
        await wait_until(lambda: setup.is_closed(slow))
    assert [request.delivery.message.queue_id for request in setup.dispatched] == [
        quick.message.queue_id,
        slow.message.queue_id,
    ]


async def test_burst_over_the_site_limit_is_spooled_and_delivered() -> None:
    setup = RouterSetup(
        relay=ToRelay("smart.test", 25),
        settings=RouterSettings(max_active_deliveries_per_site=10, max_batch_records=50),
        deliver=succeed,
    )
    mails = [accepted_now("u@far.test") for _ in range(300)]
    for mail in mails:
        await setup.log.append(mail)
    async with setup.running():
        for mail in mails:
            await wait_until(lambda mail=mail: setup.is_closed(mail))
    assert len({request.delivery.id for request in setup.dispatched}) == len(setup.dispatched) == 300
    assert await setup.entries() == []


async def test_due_deliveries_are_dispatched_without_a_pause() -> None:
    setup = RouterSetup(relay=ToRelay("smart.test", 25), settings=RouterSettings(max_batch_records=10))
    now, spooled = datetime.now(UTC), await setup.spool.put(CONTENT)
    for _ in range(60):
        message = accepted_now("u@far.test").message
        delivery = Delivery(delivery_id(message.queue_id, 1), message, ToRelay("smart.test", 25))
        await setup.log.append(QueueEntry(delivery, Waiting(now, WaitCause.DEFERRED, "Greylisted"), spooled, 1))
    async with setup.running(), asyncio.timeout(3):  # one batch per second would take five
        await wait_until(lambda: len(setup.dispatched) == 60)


async def test_content_for_many_sites_is_spooled_and_not_copied() -> None:
    sites = {f"d{number}.test": [(10, f"mx.d{number}.test")] for number in range(100)}
    setup = RouterSetup(resolver=StaticResolver(mx=sites), deliver=succeed)
    content = CONTENT + b"x" * 200_000
    mails = [
        accepted_now(*(f"u@{site}" for site in sites), content=Inline(content)),
        accepted_now("u@d1.test", "u@d2.test"),
    ]
    for mail in mails:
        await setup.log.append(mail)
    async with setup.running():
        for mail in mails:
            await wait_until(lambda mail=mail: setup.is_closed(mail))
    assert len(setup.dispatched) == 102
    bodies = [
        request.content
        for request in setup.dispatched
        if request.delivery.message.queue_id == mails[0].message.queue_id
    ]
    assert len(set(bodies)) == len(setup.spool.contents) == 1
    assert isinstance(bodies[0], Spooled)
    assert await setup.spool.read(bodies[0]) == content
    assert sum(isinstance(request.content, Inline) for request in setup.dispatched) == 2  # few copies stay inline


async def test_next_owner_continues_from_the_committed_state() -> None:
    def postpone(request: Dispatched) -> Attempted:
        outcomes = tuple(map(deferred, request.delivery.message.envelope.recipients))
        spooled = request.content if isinstance(request.content, Spooled) else Spooled("d", len(CONTENT), "0" * 32)
        return Attempted(
            request.delivery.id, request.number, outcomes, datetime.now(UTC), timedelta(0), spooled, CONTENT
        )

    setup = RouterSetup(
        relay=ToRelay("smart.test", 25), deliver=postpone, settings=RouterSettings(retry_delays=[timedelta(seconds=1)])
    )
    mail = accepted_now("u@far.test")
    async with setup.running():
        await setup.log.append(mail)
        await wait_until(lambda: len(setup.dispatched) == 1)

        async def waits() -> bool:
            return any(isinstance(entry.state, Waiting) for entry in await setup.entries())

        await wait_until(waits)
    setup.deliver = succeed
    async with setup.running():
        await wait_until(lambda: setup.is_closed(mail))
    assert setup.dispatched[-1].number == len(setup.dispatched) >= 2


async def test_dsn_about_spooled_content_quotes_its_header() -> None:
    setup = RouterSetup(deliver=succeed)
    spooled = await setup.spool.put(CONTENT + b"x" * 300_000)
    mail = accepted_now("u@nowhere.test", sender="alice@example.test", content=spooled)
    async with setup.running():
        await setup.log.append(mail)
        await wait_until(lambda: setup.dispatched)
    content = setup.dispatched[0].content
    assert isinstance(content, Inline)
    assert b"Subject: hello" in content.data
    assert b"xxx" not in content.data


async def test_failed_rewind_is_repeated_before_the_next_read() -> None:
    """The rewind fails once: no batch may be read from the wrong offset in the meantime."""
    calls: list[str] = []

    class Shard:
        number = 0
        failures = 2

        async def replay(self) -> AsyncIterator[Sequence[QueueEntry]]:
            calls.append("replay")
            for batch in ():
                yield batch

        async def read(self, limit: int, wait: timedelta) -> Sequence[Input]:
            calls.append("take")
            if calls.count("take") > 1:
                raise ShardLost
            return [Entry("accepted", 0, 1, accepted_now("alice@example.test"))]

        async def commit(self, outputs: Sequence[Record], consumed: object) -> None:
            calls.append("commit")
            raise LogUnavailable("no quorum")

        async def rewind(self) -> None:
            calls.append("rewind")
            self.failures -= 1
            if self.failures:
                raise LogUnavailable("no quorum")

    class Log:
        async def own_router_shards(
            self, process: RouterShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
        ) -> None:
            assert on_ready is not None
            on_ready()
            shard: RouterShard = Shard()
            await process(shard)

    setup = RouterSetup()
    router = router_on(Log(), setup)
    await router.run(lambda: None, asyncio.Event())
    assert calls == ["replay", "take", "take", "commit", "rewind", "rewind", "replay", "take"]


async def test_lost_shard_is_no_longer_counted() -> None:
    def active_deliveries() -> float | None:
        return REGISTRY.get_sample_value("eilpost_queue_recipients", {"state": "active"})

    setup = RouterSetup(relay=ToRelay("smart.test", 25))
    await setup.log.append(accepted_now("u@far.test"))
    async with setup.running():
        await wait_until(lambda: active_deliveries() == 1)
    assert active_deliveries() == 0


async def test_unusable_log_ends_the_role_with_one_line() -> None:
    class Log:
        async def own_router_shards(
            self, process: RouterShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
        ) -> None:
            assert on_ready is not None
            on_ready()
            raise LogUnusable("var/log.db: frame version 9 is newer than this program")

    setup = RouterSetup()
    router = router_on(Log(), setup)
    with pytest.raises(ServiceError, match="frame version 9"):
        await router.run(lambda: None, asyncio.Event())
