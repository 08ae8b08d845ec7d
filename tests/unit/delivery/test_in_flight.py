"""Tests of the in-flight limits."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from delivery.in_flight import InFlight, Item


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.integers(0, 60)), max_size=40),
    st.integers(1, 6),
    st.integers(10, 100),
    st.data(),
)
def test_limits_hold_and_every_delivery_starts(
    items: list[tuple[str, int, int]], count: int, size: int, data: st.DataObject
) -> None:
    share = 2
    in_flight: InFlight[str, int] = InFlight(
        slots=count, budget_bytes=size, queued_per_owner=100, site_limit=lambda _: share
    )
    in_flight.register("me")
    for number, (site, queued_bytes, added_bytes) in enumerate(items):
        in_flight.add("me", number, site, queued_bytes, queued_bytes + added_bytes)
    active: list[Item[str, int]] = []
    seen: list[int] = []
    while not in_flight.empty:
        started = in_flight.start()
        active += started
        seen += [item.entry for item in started]
        assert active, "nothing can move"
        assert len(active) == in_flight.in_flight_count <= count
        for site in "abc":
            assert sum(item.site == site for item in active) <= share
        in_flight.finish(active.pop(data.draw(st.integers(0, len(active) - 1))), responsive=data.draw(st.booleans()))
    assert sorted(seen) == list(range(len(items)))
    assert in_flight.memory_bytes == 0
    for site in "abc":  # in order within a site
        numbers = [number for number in seen if items[number][0] == site]
        if all(items[number][2] == 0 for number in numbers):
            assert numbers == sorted(numbers)


def test_read_limit() -> None:
    in_flight: InFlight[str, str] = InFlight(slots=1, budget_bytes=100, queued_per_owner=3, site_limit=lambda _: 1)
    in_flight.register("me")
    assert in_flight.read_limit("me", 1000) == 1  # at least one if nothing is in flight
    assert in_flight.read_limit("me", 50) == 2
    in_flight.add("me", "a", "site", 60, 60)
    assert in_flight.read_limit("me", 50) == 0
    assert in_flight.read_limit("me", 20) == 2
    assert [item.entry for item in in_flight.take_content(5)] == ["a"]
    assert in_flight.empty
    in_flight.add("me", "a", "site", 0, 60)
    assert in_flight.take_content(5) == []


def test_adaptive_limits_are_bounded_in_number() -> None:
    in_flight: InFlight[str, int] = InFlight(slots=10, budget_bytes=100, queued_per_owner=100, site_limit=lambda _: 10)
    in_flight.register("me")
    for number in range(5000):
        in_flight.add("me", number, f"site{number}", 0, 0)
        (started,) = in_flight.start()
        in_flight.finish(started, responsive=True)
    assert in_flight.empty
    assert len(in_flight._adaptive_limits) <= 2000


def test_unregistered_owner_drops_only_its_queued_deliveries() -> None:
    in_flight: InFlight[str, int] = InFlight(slots=2, budget_bytes=100, queued_per_owner=3, site_limit=lambda _: 2)
    for owner in ("me", "other"):
        in_flight.register(owner)
        for number in range(3):
            in_flight.add(owner, number, "site", 10, 10)
        assert not in_flight.has_queue_space(owner)
    running = in_flight.start()
    assert [item.owner for item in running] == ["me", "me"]
    in_flight.unregister("me")
    assert (in_flight.queued, in_flight.in_flight_count, in_flight.memory_bytes) == (3, 2, 50)
    assert in_flight.start() == []  # deliveries in flight count
    for item in running:
        in_flight.finish(item, responsive=True)
    assert [item.owner for item in in_flight.start()] == ["other", "other"]
    assert (in_flight.queued, in_flight.in_flight_count, in_flight.memory_bytes) == (1, 2, 30)


def test_read_limit_is_shared_by_owners() -> None:
    in_flight: InFlight[str, int] = InFlight(slots=2, budget_bytes=80, queued_per_owner=50, site_limit=lambda _: 2)
    for number in range(4):
        in_flight.register(f"owner{number}")
    assert [in_flight.read_limit(f"owner{number}", 10) for number in range(4)] == [2, 2, 2, 2]


def _full(in_flight: InFlight[str, int], sites: int, per_site: int = 1, size: int = 0) -> list[Item[str, int]]:
    """Queue deliveries for many unproven sites and start as many as allowed."""
    for number in range(sites * per_site):
        in_flight.add("me", number, f"tarpit{number % sites}", size, size)
    return in_flight.start()


def new_in_flight(**limits: Any) -> InFlight[str, int]:
    in_flight: InFlight[str, int] = InFlight(
        slots=40, budget_bytes=1000, queued_per_owner=9000, site_limit=lambda _: 10, **limits
    )
    in_flight.register("me")
    return in_flight


def test_unproven_site_gets_two_slots_and_more_as_it_replies() -> None:
    in_flight = new_in_flight()
    most = 0
    active = _full(in_flight, 1, 60)
    assert len(active) == 2
    while active:
        in_flight.finish(active.pop(0), responsive=True)
        active += in_flight.start()
        most = max(most, in_flight.in_flight_count)
    assert most == 10
    active = _full(in_flight, 1, 60)
    for _ in range(20):
        in_flight.finish(active.pop(0), responsive=False)
        active += in_flight.start()
    assert in_flight.in_flight_count == 2


def test_unproven_sites_share_half_of_slots_and_memory() -> None:
    in_flight = new_in_flight()
    assert len(_full(in_flight, 500)) == 20
    in_flight.add("me", -1, "known", 0, 0)
    assert in_flight.start() == []  # the site is unproven
    other = new_in_flight(is_trusted=lambda site: "://" in site)
    assert len(_full(other, 500, size=100)) == 5
    for number in range(30):
        other.add("me", number, "smtp://relay:25", 0, 0)
    assert len(other.start()) > 5


def test_unproven_sites_do_not_block_proven_ones() -> None:
    in_flight = new_in_flight()
    for number in range(10):
        in_flight.add("me", number, "good", 0, 0)
        for started in in_flight.start():
            in_flight.finish(started, responsive=True)
    _full(in_flight, 500)
    for number in range(30):
        in_flight.add("me", number, "good", 0, 0)
    assert [started.site for started in in_flight.start()] == ["good"] * 10


def test_reserved_site_has_slots_of_its_own() -> None:
    in_flight = new_in_flight(reserved={"mailbox": 5}, is_trusted=lambda site: "://" in site)
    for site in range(40):
        in_flight.add("me", site, f"smtp://relay{site}", 0, 0)
    assert len(_full(in_flight, 500)) == 40
    for number in range(9):
        in_flight.add("me", number, "mailbox", 100, 100)
    running = in_flight.start()
    assert [started.site for started in running] == ["mailbox"] * 5
    for started in running:
        in_flight.finish(started, responsive=False)
    assert len(in_flight.start()) == 4


def test_load_returns_to_zero() -> None:
    in_flight = new_in_flight()
    for turn in range(30):
        active = _full(in_flight, 50, 3, size=1)
        while active:
            finished = active.pop(turn % len(active))
            in_flight.finish(finished, responsive=(finished.entry + turn) % 3 > 0)
            active += in_flight.start()
    assert in_flight.empty
    assert (in_flight.memory_bytes, in_flight._unproven_load.count, in_flight._unproven_load.size_bytes) == (0, 0, 0)
    assert (in_flight._shared_load.count, in_flight._shared_load.size_bytes, in_flight._load_by_site) == (0, 0, {})
