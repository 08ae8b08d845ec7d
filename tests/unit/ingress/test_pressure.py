"""Connections and memory are counted and counted out again; a client has its share of both; who begins a message and
does not end it has to go when others need the memory.
"""

from __future__ import annotations

import asyncio

import pytest

from ingress.pressure import RATED_SECONDS, Content, Crowd, Meter
from tests.support.ingressing import running

STALE = 3 * RATED_SECONDS


def content(
    meter: Meter, octets: int, client: str = "c", *, exempt: bool = False, cuts: list[str] | None = None
) -> Content:
    one = Content(client, 0.0, lambda: None if cuts is None else cuts.append(f"{client} {octets}"), exempt=exempt)
    meter.begin(one)
    assert meter.hold(one, octets, 0.0)
    return one


def test_the_crowd_has_a_limit_and_so_has_each_client() -> None:
    crowd = Crowd(limit=3, limit_per_client=2)
    assert [crowd.enter("192.0.2.1", exempt=False) for _ in range(3)] == [True, True, False]
    assert crowd.total == 2  # who was turned away is not counted
    assert crowd.enter("192.0.2.2", exempt=False)
    assert not crowd.enter("192.0.2.3", exempt=False)
    crowd.leave("192.0.2.1")
    assert crowd.enter("192.0.2.1", exempt=False)
    for ip in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        crowd.leave(ip)
    assert crowd.total == 0
    assert not crowd._by_client  # no client is remembered for ever


def test_an_exempt_client_is_bound_by_the_limit_of_all_only() -> None:
    crowd = Crowd(limit=3, limit_per_client=1)
    assert [crowd.enter("127.0.0.1", exempt=True) for _ in range(4)] == [True, True, True, False]


def test_one_client_holds_no_more_than_its_share() -> None:
    meter = Meter(1000, 300)
    first = content(meter, 200)
    assert meter.has_room("c", 100, 0.0, exempt=False)
    assert not meter.has_room("c", 101, 0.0, exempt=False)
    assert meter.has_room("c", 800, 0.0, exempt=True)
    assert meter.has_room("other", 300, 0.0, exempt=False)
    assert not meter.hold(first, 301, 0.0)
    assert first.held_bytes == meter.used_bytes == 200
    meter.end(first)
    meter.end(first)
    assert meter.used_bytes == 0
    assert meter.has_room("c", 300, 0.0, exempt=False)


def test_who_is_slow_makes_room_the_largest_first() -> None:
    meter = Meter(1000, 1000)
    cuts: list[str] = []
    for octets in (300, 400, 200):
        content(meter, octets, f"slow{octets}", cuts=cuts)
    assert not meter.has_room("c", 200, 1.0, exempt=False)  # nobody is slow yet
    assert meter.has_room("c", 200, STALE, exempt=False)
    assert cuts == ["slow400 400"]
    assert meter.used_bytes == 500


def test_what_is_whole_or_comes_fast_is_never_cut() -> None:
    meter = Meter(1 << 20, 1 << 20)
    cuts: list[str] = []
    whole = content(meter, 1 << 19, "whole", cuts=cuts)
    whole.is_whole = True
    fast = content(meter, 0, "fast", cuts=cuts)
    for second in range(12):
        assert meter.hold(fast, second * 40_000, float(second))
    assert not meter.has_room("c", 1 << 19, 12.0, exempt=False)
    assert cuts == []
    assert meter.has_room("c", 1 << 19, 25.0, exempt=False)
    assert cuts == ["fast 0"]


async def test_content_that_does_not_end_is_cut_when_others_need_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.pressure.RATED_SECONDS", 0.1)
    async with running(bytes_in_flight="64KiB", max_size="48KiB") as world:
        slow, other = await world.connect(), await world.connect()
        await slow.begin()
        slow.send(b"x" * 60_000 + b"\r\n")
        while world.ingress._meter.used_bytes < 60_000:
            await asyncio.sleep(0.01)
        for _ in range(4):
            await asyncio.sleep(0.15)
            slow.send(b"q")
        await other.begin()
        other.send(b"y" * 30_000 + b"\r\n")
        assert (await other.say(".")).startswith("250")
        assert await slow.reply() == "421 4.3.1 Too little room for content that comes so slowly, try again later"
        assert await slow.rest() == b""
        assert world.ingress._meter.used_bytes == 0
