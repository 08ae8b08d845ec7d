"""Tests of the batch look-ups: concurrent, bounded in number and time, and errors do not stop a shard."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import structlog

from mail.message import Spooled
from mail.queue_id import new_queue_id
from mail.resolver import AddressAnswer, DnsUnknown, IpAddresses, MxAnswer, MxHosts, NoRecords
from mail.spool.memory import MemorySpool
from router import resolve
from router.resolve import BatchResolver
from tests.support.servers.static_resolver import StaticResolver

QUICK = timedelta(milliseconds=20)
FAR = MxHosts(((10, "mx.far.test"),))


async def test_addresses_are_queried_if_there_is_no_mx() -> None:
    resolver = StaticResolver(mx={"far.test": [(10, "mx.far.test")]}, addresses={"bare.test": ["192.0.2.9"]})
    batch_resolver = BatchResolver(resolver)
    answers = await batch_resolver.resolve(["far.test", "bare.test"])
    assert answers.mx == {"far.test": FAR, "bare.test": NoRecords()}
    assert answers.addresses == {"bare.test": IpAddresses(("192.0.2.9",))}


async def test_late_answer_is_missing_and_its_query_is_not_repeated() -> None:
    resolver = StaticResolver(mx={"slow.test": [(10, "mx.far.test")]}, slow={"slow.test": 0.2})
    batch_resolver = BatchResolver(resolver, QUICK)
    for _ in range(3):
        assert (await batch_resolver.resolve(["slow.test"])).mx == {}
    patient = BatchResolver(resolver)
    assert (await patient.resolve(["slow.test"])).mx == {"slow.test": FAR}
    assert resolver.queries["slow.test"] == 2  # one per resolver
    await batch_resolver.close()


async def test_unanswered_domain_delays_one_batch_only() -> None:
    resolver = StaticResolver(slow={"silent.test": 3600.0}, mx={"far.test": [(10, "mx.far.test")]})
    batch_resolver = BatchResolver(resolver, timedelta(seconds=0.25))
    clock = asyncio.get_running_loop().time
    begun = clock()
    assert (await batch_resolver.resolve(["silent.test"])).mx == {}
    assert clock() - begun >= 0.25
    begun = clock()
    for _ in range(6):
        assert (await batch_resolver.resolve(["silent.test", "far.test"])).mx == {"far.test": FAR}
    assert clock() - begun < 0.2
    await batch_resolver.close()


async def test_two_shards_share_the_time_out_of_a_query() -> None:
    resolver = StaticResolver(slow={"slow.test": 0.1}, mx={"slow.test": [(10, "mx.far.test")]})
    batch_resolver = BatchResolver(resolver, timedelta(seconds=5))
    answers = await asyncio.gather(*(batch_resolver.resolve(["slow.test"]) for _ in range(2)))
    assert [answer.mx for answer in answers] == [{"slow.test": FAR}] * 2


async def test_concurrent_queries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "QUERIES_MAX", 10)
    names = [f"d{number}.test" for number in range(30)]
    resolver = StaticResolver(slow=dict.fromkeys(names, 3600.0))
    batch_resolver = BatchResolver(resolver, QUICK)
    for _ in range(2):
        assert (await batch_resolver.resolve(names)).mx == {}
    assert resolver.queries.total() == 10
    await asyncio.wait_for(batch_resolver.close(), 5)
    assert (await batch_resolver.resolve(["known.test"])).mx.keys() == {"known.test"}  # the limit is free again


async def test_bug_in_the_resolver_is_an_unknown_answer() -> None:
    class Broken:
        async def mx(self, domain: str) -> MxAnswer:
            raise ZeroDivisionError

        async def addresses(self, host: str) -> AddressAnswer:
            raise AssertionError

    with structlog.testing.capture_logs() as lines:
        answers = await BatchResolver(Broken()).resolve(["far.test"])
    assert isinstance(answers.mx["far.test"], DnsUnknown)
    assert [line["event"] for line in lines] == ["resolver failed, deliveries wait for DNS"]


async def test_hanging_spool_gives_a_dsn_without_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(MemorySpool):
        async def read(self, spooled: Spooled, limit_bytes: int | None = None) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(resolve, "SPOOL_TIMEOUT_SECONDS", 0.05)
    queue_id = new_queue_id()
    async with asyncio.timeout(5):
        assert await resolve.read_headers(Hanging(), {queue_id: Spooled("a", 1, "d")}) == {queue_id: b""}
