"""Partitioning of records over topics and shards."""

from __future__ import annotations

from mail.log.topics import RELAY_BUCKETS, ShardCounts, partition_key, place
from mail.route import ToMailbox, ToMx
from tests.support.builders.records import RELAY, delivery, dispatched

COUNTS = ShardCounts(by_queue_id=12, of_dispatched=12)


def shards(route_of, messages: int = 200) -> set[int]:  # type: ignore[no-untyped-def]
    return {place(dispatched(number, route_of(number)), COUNTS).shard for number in range(messages)}


def test_mailbox_deliveries_are_partitioned_by_owner() -> None:
    assert len(shards(lambda number: ToMailbox(f"user{number}@example.test"))) == 12
    assert len(shards(lambda _: ToMailbox("alice@example.test"))) == 1


def test_relay_deliveries_are_spread_over_buckets() -> None:
    assert len(shards(lambda _: RELAY)) > 6
    assert len({partition_key(delivery(number, RELAY)) for number in range(1000)}) == RELAY_BUCKETS
    assert partition_key(delivery(1, RELAY, part=1)) == partition_key(delivery(1, RELAY, part=2))


def test_deliveries_of_an_mx_site_share_a_shard() -> None:
    assert len(shards(lambda number: ToMx(f"d{number}.test", ((10, "mx.test"),)))) == 1
