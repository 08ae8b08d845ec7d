"""Recent failed logins per client."""

from __future__ import annotations

from mailstore.pop3.login_failures import CLIENTS_MAX, FORGET_SECONDS, LoginFailures, delay_factor


def test_failures_of_a_client_are_counted_until_it_pauses() -> None:
    failures = LoginFailures()
    assert [failures.add("192.0.2.1", now) for now in (0, 1, 2)] == [1, 2, 3]
    assert failures.add("192.0.2.2", 2) == 1
    assert failures.add("192.0.2.1", 2 + FORGET_SECONDS) == 4
    assert failures.add("192.0.2.1", 3 + 2 * FORGET_SECONDS) == 1


def test_addresses_of_an_ipv6_network_are_one_client() -> None:
    failures = LoginFailures()
    assert [failures.add(f"2001:db8::{number}", 0) for number in range(3)] == [1, 2, 3]


def test_the_table_is_bounded_and_forgets_the_oldest() -> None:
    failures = LoginFailures()
    for number in range(CLIENTS_MAX + 1):
        failures.add(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", number / 100)
    assert len(failures) == CLIENTS_MAX
    assert failures.add("10.0.0.1", 101) == 2
    assert failures.add("10.0.0.0", 101) == 1


def test_the_delay_grows_and_is_bounded() -> None:
    assert [delay_factor(count) for count in (1, 2, 3, 4, 5, 6, 7, 10_000)] == [1, 1, 1, 2, 4, 8, 8, 8]
