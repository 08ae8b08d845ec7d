"""Tests of the AIMD window of a site."""

from __future__ import annotations

import pytest

from delivery import site_window
from delivery.site_window import (
    PROMPT_SECONDS,
    RETENTION_SECONDS,
    TRUSTED_START,
    UNPROVEN_START,
    SiteWindow,
    SiteWindows,
)


def new_window(maximum: int, *, is_trusted: bool = True, successes: int = 0) -> SiteWindow:
    window = SiteWindow(maximum, 30.0, is_trusted=is_trusted)
    succeed(window, successes)
    return window


def succeed(window: SiteWindow, transactions: int) -> None:
    for _ in range(transactions):
        window.on_transaction(1.0, 0.0)


def test_window_grows_with_success() -> None:
    window = new_window(6)
    assert window.connection_limit == TRUSTED_START
    assert window.delivery_limit == 2 * TRUSTED_START
    window = new_window(6, successes=10)
    assert (window.connection_limit, window.delivery_limit) == (6, 12)
    assert new_window(1).connection_limit == 1


@pytest.mark.parametrize("maximum", [1, 2, 20])
def test_site_is_unproven_until_it_replies_promptly(maximum: int) -> None:
    window = new_window(maximum, is_trusted=False)
    assert window.is_unproven
    assert (window.delivery_limit, window.connection_limit) == (1, 1)  # it may never greet
    window.on_greeting()
    assert window.is_unproven
    assert window.delivery_limit == UNPROVEN_START
    assert window.connection_limit == min(UNPROVEN_START, maximum)
    window.on_transaction(PROMPT_SECONDS + 1, 0.0)
    assert window.is_unproven
    window.on_transaction(PROMPT_SECONDS, 0.0)
    assert not window.is_unproven
    for _ in range(10):
        window.on_transaction(PROMPT_SECONDS + 1, 0.0)
    assert window.is_unproven
    assert not new_window(maximum).is_unproven


def test_late_transactions_halve_the_window_down_to_its_start() -> None:
    window = new_window(20, successes=20)
    limits = []
    for _ in range(4):
        window.on_transaction(PROMPT_SECONDS + 1, 0.0)
        limits.append(window.connection_limit)
    assert limits == [10, 5, 4, 4]


def test_overload_halves_the_window_and_leaves_one_connection() -> None:
    window = new_window(20, successes=20)
    window.on_overload(open_connections=19)
    assert window.connection_limit == 10
    window.on_overload(open_connections=3)
    assert window.connection_limit == 3
    window.on_overload(open_connections=0)
    assert (window.connection_limit, window.delivery_limit) == (1, 2 * TRUSTED_START)
    window.on_transaction(PROMPT_SECONDS + 1, 0.0)
    assert window.connection_limit == 1


def test_growth_after_a_halving_is_one_a_round() -> None:
    window = new_window(20, successes=20)
    window.on_overload(open_connections=19)
    limits = []
    for _ in range(3):
        succeed(window, window.connection_limit)
        limits.append(window.connection_limit)
    assert limits == [11, 12, 13]


def test_unreachable_site_is_not_tried_during_its_back_off() -> None:
    window = new_window(20, successes=20)
    assert window.backoff_reason(100.0) is None
    window.on_unreachable("refused", 100.0)
    assert window.backoff_reason(129.9) == "refused"
    assert window.backoff_reason(130.0) is None
    assert window.connection_limit == TRUSTED_START
    untrusted = new_window(20, is_trusted=False, successes=20)
    untrusted.on_unreachable("refused", 100.0)
    assert untrusted.connection_limit == 1


def test_windows_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_window, "WINDOWS_MAX", 4)
    windows = SiteWindows(20, 30.0)
    used = windows.use("mx:used", 0.0)
    for number in range(10):
        windows.use(f"mx:{number}", 0.0).on_transaction(1.0, 0.0)
        assert windows.use("mx:used", 0.0) is used
    assert [windows.read(f"mx:{number}").is_unproven for number in range(10)] == [True] * 7 + [False] * 3
    assert windows.read("mx:used") is used
    assert set(windows._windows) == {"mx:used", "mx:7", "mx:8", "mx:9"}


def test_window_with_connections_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool counts them in the window that it has."""
    monkeypatch.setattr(site_window, "WINDOWS_MAX", 2)
    windows = SiteWindows(20, 30.0)
    connected = windows.use("mx:connected", 0.0)
    connected.connections = 1
    for number in range(5):
        windows.use(f"mx:{number}", 0.0)
    assert windows.use("mx:connected", 0.0) is connected


def test_window_without_connections_starts_again_after_its_retention() -> None:
    windows = SiteWindows(20, 30.0)
    window = windows.use("mx:a", 0.0)
    window.on_transaction(1.0, 0.0)
    assert windows.use("mx:a", RETENTION_SECONDS) is window
    window.connections = 1
    assert windows.use("mx:a", 3 * RETENTION_SECONDS) is window
    window.connections = 0
    assert windows.use("mx:a", 5 * RETENTION_SECONDS).is_unproven
