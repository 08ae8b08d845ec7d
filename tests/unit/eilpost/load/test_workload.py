"""A message is determined by its number, with the requested shares."""

from __future__ import annotations

from collections import Counter

import pytest

from eilpost.load.workload import (
    DestinationKind,
    Size,
    Workload,
    find_load_id,
    parse_recipient,
    parse_share,
    parse_sizes,
)


def test_sizes_with_and_without_weights() -> None:
    assert parse_sizes("10kB") == (Size(10_000, 1.0),)
    assert parse_sizes("2kB:80, 100kB:18,1MB:2") == (Size(2000, 80.0), Size(100_000, 18.0), Size(1_000_000, 2.0))


@pytest.mark.parametrize(
    "text", ["", "10", "10kB:", "10kB:x", "10kB:-1", "2kB:0", "1GB", "0B", "10kB;2kB", "1B," * 20 + "1B"]
)
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_sizes(text)


def test_shares_are_parsed() -> None:
    assert parse_share("5%") == 0.05
    assert parse_share("0%") == 0
    assert parse_share("100%") == 1
    for text in ("5", "0.05", "-1%", "101%", "%", "nan%"):
        with pytest.raises(ValueError, match="expected"):
            parse_share(text)


def test_every_part_of_the_load_has_the_requested_shares() -> None:
    workload = Workload("run1", failing=0.05, deferring=0.2, domains=20, sizes=parse_sizes("1kB:90,5kB:10"))
    for start in (0, 12_345):
        kinds = Counter(workload.kind(index) for index in range(start, start + 2000))
        assert abs(kinds[DestinationKind.FAILING] - 100) <= 5
        assert abs(kinds[DestinationKind.DEFERRING] - 400) <= 5
        large = sum(workload.message(number).size_bytes > 3000 for number in range(start, start + 2000))
        assert abs(large - 200) <= 5


def test_every_domain_gets_mail() -> None:
    workload = Workload("run1", failing=0.1, deferring=0.2, domains=10)
    domains = {workload.address(index).partition("@")[2] for index in range(1000)}
    assert domains == {
        "failing1.load.test",
        *(f"deferring{number}.load.test" for number in (1, 2)),
        *(f"d{number}.load.test" for number in range(1, 8)),
    }


def test_recipient_address_is_parsed_back() -> None:
    workload = Workload("0a1b2c3d", recipients=3, failing=0.3, deferring=0.3)
    for number in range(50):
        message = workload.message(number)
        found = [parse_recipient(address) for address in message.recipients]
        assert [(each.index, each.run, each.kind) for each in found if each is not None] == [
            (index, "0a1b2c3d", workload.kind(index)) for index in range(3 * number, 3 * number + 3)
        ]
    for other in ("alice@example.test", "r1@d1.load.test", "r1.run@x1.load.test", "", "rx.run@d1.load.test"):
        assert parse_recipient(other) is None


@pytest.mark.parametrize("size", [1, 300, 1000, 10_000, 250_000])
def test_message_is_well_formed_and_has_the_requested_size(size: int) -> None:
    message = Workload("run1", sizes=(Size(size, 1.0),), date="Sun, 29 Nov 2026 00:00:00 +0000").message(7)
    content = message.head + message.body
    assert find_load_id(content) == ("run1", 7)
    assert content.endswith(b"\r\n")
    assert content.count(b"\n") == content.count(b"\r\n")
    assert all(len(line) <= 998 for line in content.split(b"\r\n"))
    assert all(line.startswith(b"..") for line in content.split(b"\r\n") if line.startswith(b"."))
    if size >= 1000:
        assert abs(len(content) - size) < 150


def test_load_id_is_found_only_in_the_header() -> None:
    message = Workload("run1").message(3)
    received = b"Received: from a by b; now\r\n" * 30
    assert find_load_id(received + message.head + message.body) == ("run1", 3)
    assert find_load_id(b"Subject: x\r\n\r\n> X-Eilpost-Load-Id: run1-3\r\n") is None
