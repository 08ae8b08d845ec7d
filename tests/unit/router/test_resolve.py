"""Questions to DNS: asked together, never waited for long, bounded, and never the end of a shard."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import structlog

from mail.message import Spooled
from mail.queue_id import new_queue_id
from mail.resolver import AddressAnswer, DnsUnknown, IpAddresses, MxAnswer, MxHosts, NoRecords
from mail.resolver.static import StaticResolver
from mail.spool.memory import MemorySpool
from router import resolve
from router.resolve import BatchResolver

QUICK = timedelta(milliseconds=20)
FAR = MxHosts(((10, "mx.far.test"),))


async def test_addresses_are_asked_for_where_there_is_no_mx() -> None:
    resolver = StaticResolver(mx={"far.test": [(10, "mx.far.test")]}, addresses={"bare.test": ["192.0.2.9"]})
    questions = BatchResolver(resolver)
    answers = await questions.resolve(["far.test", "bare.test"])
    assert answers.mx == {"far.test": FAR, "bare.test": NoRecords()}
    assert answers.addresses == {"bare.test": IpAddresses(("192.0.2.9",))}


async def test_a_late_answer_is_missing_and_its_question_is_not_asked_again() -> None:
    resolver = StaticResolver(mx={"slow.test": [(10, "mx.far.test")]}, slow={"slow.test": 0.2})
    questions = BatchResolver(resolver, QUICK)
    for _ in range(3):
        assert (await questions.resolve(["slow.test"])).mx == {}
    patient = BatchResolver(resolver)
    assert (await patient.resolve(["slow.test"])).mx == {"slow.test": FAR}
    assert resolver.queries["slow.test"] == 2  # one for each who asks
    await questions.close()


async def test_a_domain_known_to_be_silent_costs_one_batch_and_no_other() -> None:
    resolver = StaticResolver(slow={"silent.test": 3600.0}, mx={"far.test": [(10, "mx.far.test")]})
    questions = BatchResolver(resolver, timedelta(seconds=0.25))
    clock = asyncio.get_running_loop().time
    begun = clock()
    assert (await questions.resolve(["silent.test"])).mx == {}
    assert clock() - begun >= 0.25
    begun = clock()
    for _ in range(6):
        assert (await questions.resolve(["silent.test", "far.test"])).mx == {"far.test": FAR}
    assert clock() - begun < 0.2
    await questions.close()


async def test_two_shards_share_the_patience_with_a_question() -> None:
    resolver = StaticResolver(slow={"slow.test": 0.1}, mx={"slow.test": [(10, "mx.far.test")]})
    questions = BatchResolver(resolver, timedelta(seconds=5))
    answers = await asyncio.gather(*(questions.resolve(["slow.test"]) for _ in range(2)))
    assert [one.mx for one in answers] == [{"slow.test": FAR}] * 2


async def test_a_flood_of_silent_domains_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "QUERIES_MAX", 10)
    names = [f"d{number}.test" for number in range(30)]
    resolver = StaticResolver(slow=dict.fromkeys(names, 3600.0))
    questions = BatchResolver(resolver, QUICK)
    for _ in range(2):
        assert (await questions.resolve(names)).mx == {}
    assert resolver.queries.total() == 10
    await asyncio.wait_for(questions.close(), 5)
    assert (await questions.resolve(["known.test"])).mx.keys() == {"known.test"}  # and there is room again


async def test_a_bug_in_the_resolver_is_an_answer_not_known() -> None:
    class Broken:
        async def mx(self, domain: str) -> MxAnswer:
            raise ZeroDivisionError

        async def addresses(self, host: str) -> AddressAnswer:
            raise AssertionError

    with structlog.testing.capture_logs() as lines:
        answers = await BatchResolver(Broken()).resolve(["far.test"])
    assert isinstance(answers.mx["far.test"], DnsUnknown)
    assert [line["event"] for line in lines] == ["resolver failed"]


async def test_a_spool_that_hangs_costs_a_report_its_headers_and_not_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(MemorySpool):
        async def read(self, spooled: Spooled, limit_bytes: int | None = None) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(resolve, "SPOOL_TIMEOUT_SECONDS", 0.05)
    queue_id = new_queue_id()
    async with asyncio.timeout(5):
        assert await resolve.read_headers(Hanging(), {queue_id: Spooled("a", 1, "d")}) == {queue_id: b""}
