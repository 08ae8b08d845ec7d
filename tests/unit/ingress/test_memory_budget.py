"""Connection limit and memory budget, in total and per client; slow message data is aborted when memory is short."""

from __future__ import annotations

import pytest

from ingress.limits import RATE_INTERVAL_SECONDS, ConnectionLimiter, IncomingData, MemoryBudget
from tests.support.clock import Clock
from tests.support.servers.ingress import running_ingress
from tests.support.servers.ports import wait_until

SLOW_AT = 3 * RATE_INTERVAL_SECONDS


def incoming_data(
    budget: MemoryBudget, size_bytes: int, client: str = "c", *, exempt: bool = False, aborted: list[str] | None = None
) -> IncomingData:
    data = IncomingData(
        client, 0.0, lambda: None if aborted is None else aborted.append(f"{client} {size_bytes}"), exempt=exempt
    )
    budget.add(data)
    assert budget.resize(data, size_bytes, 0.0)
    return data


def test_connections_are_limited_in_total_and_per_client() -> None:
    limiter = ConnectionLimiter(limit=3, limit_per_client=2)
    assert [limiter.acquire("192.0.2.1", exempt=False) for _ in range(3)] == [True, True, False]
    assert limiter.total == 2  # refused connections are not counted
    assert limiter.acquire("192.0.2.2", exempt=False)
    assert not limiter.acquire("192.0.2.3", exempt=False)
    limiter.release("192.0.2.1")
    assert limiter.acquire("192.0.2.1", exempt=False)
    for ip in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        limiter.release(ip)
    assert limiter.total == 0
    assert not limiter._by_client  # no state for clients without connections


def test_exempt_client_has_only_the_total_limit() -> None:
    limiter = ConnectionLimiter(limit=3, limit_per_client=1)
    assert [limiter.acquire("127.0.0.1", exempt=True) for _ in range(4)] == [True, True, True, False]


def test_memory_is_limited_per_client() -> None:
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


def test_slow_data_is_aborted_largest_first() -> None:
    budget = MemoryBudget(1000, 1000)
    aborted: list[str] = []
    for size_bytes in (300, 400, 200):
        incoming_data(budget, size_bytes, f"slow{size_bytes}", aborted=aborted)
    assert not budget.has_capacity("c", 200, 1.0, exempt=False)  # no data is slow yet
    assert budget.has_capacity("c", 200, SLOW_AT, exempt=False)
    assert aborted == ["slow400 400"]
    assert budget.used_bytes == 500


def test_complete_or_fast_data_is_not_aborted() -> None:
    budget = MemoryBudget(1 << 20, 1 << 20)
    aborted: list[str] = []
    complete = incoming_data(budget, 1 << 19, "complete", aborted=aborted)
    complete.is_complete = True
    fast = incoming_data(budget, 0, "fast", aborted=aborted)
    for second in range(12):
        assert budget.resize(fast, second * 40_000, float(second))
    assert not budget.has_capacity("c", 1 << 19, 12.0, exempt=False)
    assert aborted == []
    assert budget.has_capacity("c", 1 << 19, 25.0, exempt=False)
    assert aborted == ["fast 0"]


async def test_slow_data_gets_421_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with running_ingress(max_in_flight_bytes="64KiB", max_message_size="48KiB") as server:
        slow, other = await server.connect(), await server.connect()
        await slow.start_data()
        slow.send(b"x" * 60_000 + b"\r\n")
        await wait_until(lambda: server.in_flight_bytes == 60_002)
        for number in range(1, 5):
            clock.advance(0.9 * RATE_INTERVAL_SECONDS)
            slow.send(b"q")
            await wait_until(lambda number=number: server.in_flight_bytes == 60_002 + number)
        await other.start_data()
        other.send(b"y" * 30_000 + b"\r\n")
        assert (await other.command(".")).startswith("250")
        assert await slow.read_reply() == "421 4.3.1 Server busy and message data too slow, try again later"
        assert await slow.read_to_end() == b""
        assert server.in_flight_bytes == 0
