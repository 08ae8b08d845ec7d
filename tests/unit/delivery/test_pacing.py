"""Tests of connection pacing."""

from __future__ import annotations

from delivery.pacing import START_CONNECTIONS, Pacing


def test_connection_limit_grows_with_success() -> None:
    pacing = Pacing(6, 30.0)
    assert pacing.connection_limit == START_CONNECTIONS
    for _ in range(10):
        pacing.on_success()
    assert pacing.connection_limit == 6
    assert Pacing(1, 30.0).connection_limit == 1


def test_connection_limit_halves_on_overload_and_stays_positive() -> None:
    pacing = Pacing(20, 30.0)
    for _ in range(20):
        pacing.on_success()
    pacing.on_overload(open_connections=19)
    assert pacing.connection_limit == 10
    pacing.on_overload(open_connections=3)
    assert pacing.connection_limit == 3
    pacing.on_overload(open_connections=0)
    assert pacing.connection_limit == 1


def test_unreachable_site_is_not_tried_during_its_back_off() -> None:
    pacing = Pacing(20, 30.0)
    assert pacing.backoff_reason(100.0) is None
    pacing.on_unreachable("refused", 100.0)
    assert pacing.backoff_reason(129.9) == "refused"
    assert pacing.backoff_reason(130.0) is None


def test_consecutive_failures_back_a_site_off() -> None:
    pacing = Pacing(20, 30.0)
    for _ in range(2):
        pacing.on_first_transaction_failed("silent", 0.0)
        pacing.on_first_transaction_failed("silent", 0.0)
        pacing.on_success()
    assert pacing.backoff_reason(0.0) is None
    for _ in range(3):
        pacing.on_first_transaction_failed("silent", 0.0)
    assert pacing.backoff_reason(0.0) == "silent"
