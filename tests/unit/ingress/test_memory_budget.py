"""Connections and memory are counted and counted out again; a client has its share of both; who begins a message and
does not end it has to go when others need the memory.
"""

from __future__ import annotations

import asyncio

import pytest

from ingress.limits import RATE_INTERVAL_SECONDS, ConnectionLimiter, IncomingData, MemoryBudget
from tests.support.servers.ingress import running_ingress

STALE = 3 * RATE_INTERVAL_SECONDS


def incoming_data(
    budget: MemoryBudget, octets: int, client: str = "c", *, exempt: bool = False, cuts: list[str] | None = None
) -> IncomingData:
    one = IncomingData(client, 0.0, lambda: None if cuts is None else cuts.append(f"{client} {octets}"), exempt=exempt)
    budget.add(one)
    assert budget.resize(one, octets, 0.0)
    return one


def test_the_crowd_has_a_limit_and_so_has_each_client() -> None:
    limiter = ConnectionLimiter(limit=3, limit_per_client=2)
    assert [limiter.acquire("192.0.2.1", exempt=False) for _ in range(3)] == [True, True, False]
    assert limiter.total == 2  # who was turned away is not counted
    assert limiter.acquire("192.0.2.2", exempt=False)
    assert not limiter.acquire("192.0.2.3", exempt=False)
    limiter.release("192.0.2.1")
    assert limiter.acquire("192.0.2.1", exempt=False)
    for ip in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        limiter.release(ip)
    assert limiter.total == 0
    assert not limiter._by_client  # no client is remembered for ever


def test_an_exempt_client_is_bound_by_the_limit_of_all_only() -> None:
    limiter = ConnectionLimiter(limit=3, limit_per_client=1)
    assert [limiter.acquire("127.0.0.1", exempt=True) for _ in range(4)] == [True, True, True, False]


def test_one_client_holds_no_more_than_its_share() -> None:
    budget = MemoryBudget(1000, 300)
    first = incoming_data(budget, 200)
    assert budget.has_capacity("c", 100, 0.0, exempt=False)
    assert not budget.has_capacity("c", 101, 0.0, exempt=False)
    assert budget.has_capacity("c", 800, 0.0, exempt=True)
    assert budget.has_capacity("other", 300, 0.0, exempt=False)
    assert not budget.resize(first, 301, 0.0)
    assert first.held_bytes == budget.used_bytes == 200
    budget.remove(first)
    budget.remove(first)
    assert budget.used_bytes == 0
    assert budget.has_capacity("c", 300, 0.0, exempt=False)


def test_who_is_slow_makes_room_the_largest_first() -> None:
    budget = MemoryBudget(1000, 1000)
    cuts: list[str] = []
    for octets in (300, 400, 200):
        incoming_data(budget, octets, f"slow{octets}", cuts=cuts)
    assert not budget.has_capacity("c", 200, 1.0, exempt=False)  # nobody is slow yet
    assert budget.has_capacity("c", 200, STALE, exempt=False)
    assert cuts == ["slow400 400"]
    assert budget.used_bytes == 500


def test_what_is_whole_or_comes_fast_is_never_cut() -> None:
    budget = MemoryBudget(1 << 20, 1 << 20)
    cuts: list[str] = []
    whole = incoming_data(budget, 1 << 19, "whole", cuts=cuts)
    whole.is_complete = True
    fast = incoming_data(budget, 0, "fast", cuts=cuts)
    for second in range(12):
        assert budget.resize(fast, second * 40_000, float(second))
    assert not budget.has_capacity("c", 1 << 19, 12.0, exempt=False)
    assert cuts == []
    assert budget.has_capacity("c", 1 << 19, 25.0, exempt=False)
    assert cuts == ["fast 0"]


async def test_content_that_does_not_end_is_cut_when_others_need_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.limits.RATE_INTERVAL_SECONDS", 0.1)
    async with running_ingress(bytes_in_flight="64KiB", max_size="48KiB") as server:
        slow, other = await server.connect(), await server.connect()
        await slow.start_data()
        slow.send(b"x" * 60_000 + b"\r\n")
        while server.ingress._memory_budget.used_bytes < 60_000:
            await asyncio.sleep(0.01)
        for _ in range(4):
            await asyncio.sleep(0.15)
            slow.send(b"q")
        await other.start_data()
        other.send(b"y" * 30_000 + b"\r\n")
        assert (await other.command(".")).startswith("250")
        assert await slow.read_reply() == "421 4.3.1 Server busy and message data too slow, try again later"
        assert await slow.read_to_end() == b""
        assert server.ingress._memory_budget.used_bytes == 0
