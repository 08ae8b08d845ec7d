"""Tests of the concurrency limit of a site."""

from __future__ import annotations

from delivery.site_concurrency import START_CONNECTIONS, SiteConcurrency


def test_connection_limit_grows_with_success() -> None:
    concurrency = SiteConcurrency(6, 30.0)
    assert concurrency.connection_limit == START_CONNECTIONS
    for _ in range(10):
        concurrency.on_success()
    assert concurrency.connection_limit == 6
    assert SiteConcurrency(1, 30.0).connection_limit == 1


def test_connection_limit_halves_on_overload_and_stays_positive() -> None:
    concurrency = SiteConcurrency(20, 30.0)
    for _ in range(20):
        concurrency.on_success()
    concurrency.on_overload(open_connections=19)
    assert concurrency.connection_limit == 10
    concurrency.on_overload(open_connections=3)
    assert concurrency.connection_limit == 3
    concurrency.on_overload(open_connections=0)
    assert concurrency.connection_limit == 1


def test_unreachable_site_is_not_tried_during_its_back_off() -> None:
    concurrency = SiteConcurrency(20, 30.0)
    assert concurrency.backoff_reason(100.0) is None
    concurrency.on_unreachable("refused", 100.0)
    assert concurrency.backoff_reason(129.9) == "refused"
    assert concurrency.backoff_reason(130.0) is None


def test_consecutive_failures_back_a_site_off() -> None:
    concurrency = SiteConcurrency(20, 30.0)
    for _ in range(2):
        concurrency.on_first_transaction_failed("silent", 0.0)
        concurrency.on_first_transaction_failed("silent", 0.0)
        concurrency.on_success()
    assert concurrency.backoff_reason(0.0) is None
    for _ in range(3):
        concurrency.on_first_transaction_failed("silent", 0.0)
    assert concurrency.backoff_reason(0.0) == "silent"
