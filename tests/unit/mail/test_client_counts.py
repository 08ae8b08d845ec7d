"""Counts per client: IPv4 by address, IPv6 by /64 and by /48."""

from __future__ import annotations

import pytest

from mail.client_counts import WIDE_FACTOR, ClientCounts, client_networks


@pytest.mark.parametrize(
    ("ip", "networks"),
    [
        ("192.0.2.1", ("192.0.2.1",)),
        ("::ffff:192.0.2.1", ("192.0.2.1",)),
        ("2001:db8:1:2:3:4:5:6", ("2001:db8:1:2::/64", "2001:db8:1::/48")),
        ("2001:DB8:1:2::", ("2001:db8:1:2::/64", "2001:db8:1::/48")),
        ("", ("",)),
    ],
)
def test_networks_of_a_client(ip: str, networks: tuple[str, ...]) -> None:
    assert client_networks(ip) == networks


def test_addresses_of_one_ipv6_prefix_are_one_client() -> None:
    counts = ClientCounts(2)
    for number in range(2):
        assert counts.has_room(f"2001:db8::{number}")
        counts.add(f"2001:db8::{number}")
    assert not counts.has_room("2001:db8::ffff")
    assert counts.has_room("2001:db8:0:1::1")


def test_a_wider_ipv6_prefix_has_a_higher_limit() -> None:
    counts = ClientCounts(2)
    added = 0
    for subnet in range(100):
        if counts.has_room(f"2001:db8:0:{subnet:x}::1", 2):
            counts.add(f"2001:db8:0:{subnet:x}::1", 2)
            added += 2
    assert added == 2 * WIDE_FACTOR
    assert counts.has_room("2001:db8:1::1", 2)


def test_clients_without_an_amount_have_no_entry() -> None:
    counts = ClientCounts(5)
    counts.add("2001:db8::1", 3)
    counts.add("2001:db8::2", -3)
    assert len(counts) == 0
