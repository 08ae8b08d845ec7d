"""Contract suite of the Resolver port, and the tests of the DNS resolver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from mail.resolver import DnsUnknown, IpAddresses, MxHosts, NoRecords, NoSuchDomain, NullMx, Resolver
from mail.resolver.cache import AnswerCache
from mail.resolver.dnspython import DnsResolver
from mail.settings import ResolverSettings
from mail.units import parse_duration
from tests.support.servers.dns import DnsServer, Zone
from tests.support.servers.static_resolver import StaticResolver

_MX = {
    "example.test": [(20, "B.MX.example.test"), (10, "a.mx.Example.Test"), (10, "0.mx.example.test")],
    "nomail.test": [(0, ".")],
    "odd.test": [(0, "."), (10, "mx.odd.test")],
    "twice.test": [(10, "mx.test"), (10, "MX.test")],
}
_ADDRESSES = {
    "a.mx.example.test": ["192.0.2.1", "192.0.2.2", "2001:db8::1"],
    "six.test": ["2001:db8::6"],
    "plain.test": ["192.0.2.7"],
}


@pytest.fixture(params=["static", "dnspython"])
async def resolver(request: pytest.FixtureRequest) -> AsyncIterator[Resolver]:
    if request.param == "static":
        yield StaticResolver(mx=_MX, addresses=_ADDRESSES, fail={"broken.test"})
        return
    async with DnsServer(Zone(mx=_MX, addresses=_ADDRESSES, fail={"broken.test"})) as server:
        opened = DnsResolver(ResolverSettings(servers=[server.address]))
        yield opened
        await opened.close()


async def test_mx_hosts_are_lower_case_and_sorted_by_preference_then_name(resolver: Resolver) -> None:
    expected = MxHosts(((10, "0.mx.example.test"), (10, "a.mx.example.test"), (20, "b.mx.example.test")))
    assert await resolver.mx("example.test") == expected
    assert await resolver.mx("EXAMPLE.test.") == expected


async def test_a_null_mx_means_no_mail(resolver: Resolver) -> None:
    assert await resolver.mx("nomail.test") == NullMx()


async def test_a_root_among_real_hosts_is_ignored(resolver: Resolver) -> None:
    assert await resolver.mx("odd.test") == MxHosts(((10, "mx.odd.test"),))


async def test_a_duplicate_host_is_returned_once(resolver: Resolver) -> None:
    assert await resolver.mx("twice.test") == MxHosts(((10, "mx.test"),))


async def test_a_domain_without_mx_is_not_a_domain_that_does_not_exist(resolver: Resolver) -> None:
    assert await resolver.mx("plain.test") == NoRecords()
    assert await resolver.mx("nowhere.test") == NoSuchDomain()


async def test_a_failing_server_is_not_a_negative_answer(resolver: Resolver) -> None:
    for answer in (await resolver.mx("broken.test"), await resolver.addresses("broken.test")):
        assert isinstance(answer, DnsUnknown)
        assert "broken.test" in answer.reason


async def test_addresses_of_both_families(resolver: Resolver) -> None:
    found = await resolver.addresses("A.mx.example.test")
    assert isinstance(found, IpAddresses)
    assert set(found.addresses) == {"192.0.2.1", "192.0.2.2", "2001:db8::1"}
    assert await resolver.addresses("six.test") == IpAddresses(("2001:db8::6",))


async def test_missing_addresses(resolver: Resolver) -> None:
    assert await resolver.addresses("example.test") == NoRecords()
    assert await resolver.addresses("nowhere.test") == NoSuchDomain()


@pytest.mark.parametrize(("text", "expected"), [("192.0.2.9", "192.0.2.9"), ("2001:DB8::0", "2001:db8::")])
async def test_an_ip_address_resolves_to_itself(resolver: Resolver, text: str, expected: str) -> None:
    assert await resolver.addresses(text) == IpAddresses((expected,))


@pytest.mark.parametrize("name", ["a" * 64 + ".test", "x..test", ".".join(["abcdefgh"] * 40)])
async def test_an_impossible_name_does_not_exist(resolver: Resolver, name: str) -> None:
    assert await resolver.mx(name) == NoSuchDomain()
    assert await resolver.addresses(name) == NoSuchDomain()


# Only the resolver that queries DNS.


@pytest.fixture
async def world() -> AsyncIterator[tuple[DnsServer, Callable[..., DnsResolver]]]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(DnsServer())

        def make(**settings: object) -> DnsResolver:
            values = {"servers": [server.address], **settings}
            opened = DnsResolver(ResolverSettings.model_validate(values))
            stack.push_async_callback(opened.close)
            return opened

        yield server, make


World = tuple[DnsServer, Callable[..., DnsResolver]]


async def test_concurrent_queries_for_a_name_are_sent_once(world: World) -> None:
    server, make = world
    server.zone.mx["a.test"] = [(1, "mx.a.test")]
    resolver = make()
    answers = await asyncio.gather(*(resolver.mx("a.test") for _ in range(50)))
    assert set(answers) == {MxHosts(((1, "mx.a.test"),))}
    assert server.queries["a.test", "MX"] == 1
    await resolver.mx("a.test")
    assert server.queries["a.test", "MX"] == 1


async def test_a_cancelled_query_does_not_cancel_the_others(world: World) -> None:
    server, make = world
    server.zone.mx["a.test"] = [(1, "mx.a.test")]
    resolver = make()
    cancelled = asyncio.create_task(resolver.mx("a.test"))
    other = asyncio.create_task(resolver.mx("a.test"))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert await other == MxHosts(((1, "mx.a.test"),))
    assert server.queries["a.test", "MX"] == 1


async def test_a_negative_answer_is_cached_for_the_time_of_its_soa(world: World) -> None:
    server, make = world
    resolver = make()
    assert await resolver.mx("later.test") == NoSuchDomain()
    server.zone.mx["later.test"] = [(1, "mx.test")]
    assert await resolver.mx("later.test") == NoSuchDomain()
    server.zone.negative_seconds = 0
    assert await resolver.mx("other.test") == NoSuchDomain()
    server.zone.mx["other.test"] = [(1, "mx.test")]
    assert await resolver.mx("other.test") == MxHosts(((1, "mx.test"),))


async def test_a_negative_answer_without_soa_is_not_cached(world: World) -> None:
    server, make = world
    server.zone.has_soa = False
    resolver = make()
    assert await resolver.mx("later.test") == NoSuchDomain()
    server.zone.mx["later.test"] = [(1, "mx.test")]
    assert await resolver.mx("later.test") == MxHosts(((1, "mx.test"),))


async def test_a_failure_is_not_cached(world: World) -> None:
    server, make = world
    server.zone.mx["a.test"] = [(1, "mx.test")]
    server.zone.fail = {"a.test"}
    resolver = make()
    assert isinstance(await resolver.mx("a.test"), DnsUnknown)
    server.zone.fail = set()
    assert await resolver.mx("a.test") == MxHosts(((1, "mx.test"),))


async def test_an_unanswered_query_is_unknown_after_the_time_out(world: World) -> None:
    server, make = world
    server.zone.silent = {"silent.test"}
    answer = await make(timeout="300ms").mx("silent.test")
    assert isinstance(answer, DnsUnknown)
    assert "timed out" in answer.reason


async def test_a_failed_address_family_does_not_hide_the_other(world: World) -> None:
    server, make = world
    server.zone.addresses["a.test"] = ["192.0.2.1"]
    answer = server.answer

    def aaaa_fails(wire: bytes, *, tcp: bool) -> bytes | None:
        server.zone.fail = {"a.test", "b.test"} if b"\x00\x1c\x00\x01" in wire else set()
        return answer(wire, tcp=tcp)

    server.answer = aaaa_fails  # type: ignore[method-assign]
    server.zone.mx["b.test"] = []
    resolver = make()
    assert await resolver.addresses("a.test") == IpAddresses(("192.0.2.1",))
    assert isinstance(await resolver.addresses("b.test"), DnsUnknown)


async def test_a_truncated_answer_is_retried_over_tcp(world: World) -> None:
    server, make = world
    server.zone.mx["long.test"] = [(1, "mx.test")]
    server.zone.truncated = {"long.test"}
    assert await make().mx("long.test") == MxHosts(((1, "mx.test"),))
    assert server.tcp_queries["long.test", "MX"] == 1
    assert server.payloads == {1232}


async def test_a_cname_is_followed(world: World) -> None:
    server, make = world
    server.zone.cname = {"www.test": "real.test", "gone.test": "nowhere.test"}
    server.zone.addresses["real.test"] = ["192.0.2.1"]
    server.zone.mx["real.test"] = [(5, "mx.test")]
    resolver = make()
    assert await resolver.addresses("www.test") == IpAddresses(("192.0.2.1",))
    assert await resolver.mx("www.test") == MxHosts(((5, "mx.test"),))
    assert await resolver.mx("gone.test") == NoSuchDomain()


async def test_the_second_server_is_queried_when_the_first_fails(world: World) -> None:
    server, make = world
    async with DnsServer(Zone(fail={"a.test"})) as first:
        server.zone.mx["a.test"] = [(1, "mx.test")]
        resolver = make(servers=[first.address, server.address])
        assert await resolver.mx("a.test") == MxHosts(((1, "mx.test"),))
        assert first.queries["a.test", "MX"] >= 1


async def test_a_cache_of_size_zero_queries_each_time(world: World) -> None:
    server, make = world
    server.zone.mx["a.test"] = [(1, "mx.test")]
    resolver = make(max_cache_entries=0)
    await resolver.mx("a.test")
    await resolver.mx("a.test")
    assert server.queries["a.test", "MX"] == 2


async def test_no_answer_is_used_after_its_ttl() -> None:
    now = 0.0
    queries = 0

    async def query(question: str) -> tuple[str, float]:
        nonlocal queries
        queries += 1
        return f"{question} {queries}", parse_duration("10s").total_seconds()

    cache: AnswerCache[str, str] = AnswerCache(query, 10, lambda: now)
    assert await cache.answer("a") == "a 1"
    now = 9.9
    assert await cache.answer("a") == "a 1"
    now = 10.0
    assert await cache.answer("a") == "a 2"


async def test_an_error_of_a_shared_query_reaches_all_callers_and_is_not_cached() -> None:
    failing = True

    async def query(question: str) -> tuple[str, float]:
        await asyncio.sleep(0)
        if failing:
            raise RuntimeError("boom")
        return "fine", 10.0

    cache: AnswerCache[str, str] = AnswerCache(query, 10)
    answers = await asyncio.gather(cache.answer("a"), cache.answer("a"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [RuntimeError, RuntimeError]
    failing = False
    assert await cache.answer("a") == "fine"
