"""Connections and memory are counted, and what was counted in is counted out again."""

from __future__ import annotations

from ingress.pressure import Crowd, Meter


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


def test_the_meter_takes_all_or_nothing() -> None:
    meter = Meter(100)
    assert meter.take(60)
    assert meter.has_room(40)
    assert not meter.has_room(41)
    assert not meter.take(41)
    assert meter.used_bytes == 60
    assert meter.take(40)
    assert not meter.has_room()
    meter.give(100)
    assert meter.used_bytes == 0
