"""Log contract: shards that move between owners under load."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from mail.log import DeliveryShard, Entry, Input, RouterShard, ShardLost
from mail.message import DeliveryId, delivery_id
from mail.record import Accepted, Attempted, Dispatched
from mail.route import ToMx
from mail.settings import LogSettings
from tests.contract.log_contract.harness import (
    Harness,
    delivery_shard_of,
    read_dispatches,
    read_inputs,
    records_of,
    replay_all,
    router_shard_of,
)
from tests.contract.log_contract.owners import DeliveryOwner, Owner, OwnershipLedger, RouterOwner, call_repeatedly
from tests.support.builders.records import accepted, attempted, dispatched, event, queue_entry, queue_id
from tests.support.servers.ports import wait_until

SHARDS = 4
LAST = 900_000  # after all other records of its shard
_SHORT = timedelta(milliseconds=200)


def relay_recipient(number: int) -> Dispatched:
    """A dispatch for a site of its own, so that the dispatches reach every shard."""
    return dispatched(number, ToMx(f"d{number}.test", ((10, f"mx{number}.test"),)))


async def hand_over(harness: Harness, owners: list[Owner]) -> None:
    """Each owner joins, and the one before it leaves; the last one has all shards."""
    before: Owner | None = None
    for owner in owners:
        await owner.join(harness, before, SHARDS)
        await asyncio.sleep(0.3)  # some work with these owners
        if before is not None:
            await before.leave()
            await owner.has_all(SHARDS)
        before = owner


class RebalanceTests:
    async def test_a_delivery_shard_has_one_owner_at_a_time(self, harness: Harness) -> None:
        """Never two, also during the drain; and no finished entry is read again."""
        log = await harness.make(LogSettings(delivery_shards=SHARDS))
        ledger = OwnershipLedger()
        last = DeliveryOwner("d", ledger, log, unfinished=0)
        async with router_shard_of(log, seconds=90) as router:

            async def feed(number: int) -> None:
                await router.commit([relay_recipient(number * SHARDS + n) for n in range(SHARDS)], [])

            async with call_repeatedly(feed) as fed:
                await hand_over(harness, [*(DeliveryOwner(name, ledger, log) for name in "abc"), last])
            wanted = {relay_recipient(number).delivery.id for number in range(len(fed) * SHARDS)}
            await wait_until(lambda: ledger.deliveries_read.keys() >= wanted, what="all dispatches")
        await last.leave()
        assert ledger.overlaps == []
        assert ledger.read_after_finish == []
        assert ledger.handovers >= 3 * SHARDS
        assert max(ledger.deliveries_read.values()) > 1  # entries that an owner left unfinished
        assert ledger.finished == wanted
        await log.append(attempted(LAST))
        async with router_shard_of(log) as router:
            reports = await _reports(router)
        assert Counter(reports) == Counter({delivery_id(queue_id(LAST), 1): 1} | dict.fromkeys(wanted, 1))
        await log.close()

    async def test_each_input_is_consumed_once_while_router_shards_move(self, harness: Harness) -> None:
        """Also when an owner has not yet noticed that its shard was revoked."""
        log = await harness.make(LogSettings(shards=SHARDS))
        ledger = OwnershipLedger()
        all_of = {queue_id(number): number for number in range(5000)}

        def dispatch(record: Accepted) -> Dispatched:
            return dispatched(all_of[record.message.queue_id])

        async def feed(number: int) -> None:
            await log.append(accepted(number))

        owners: list[Owner] = [RouterOwner(name, ledger, log, dispatch) for name in "abcd"]
        async with call_repeatedly(feed) as fed:
            await hand_over(harness, owners)

        async def are_routed() -> bool:
            return not (await log.backlog()).accepted

        await wait_until(are_routed, what="the last of the inputs to be routed")
        await owners[-1].leave()
        assert ledger.handovers >= 3 * SHARDS
        async with router_shard_of(log) as router:
            await router.commit([dispatched(LAST)], [])
        async with delivery_shard_of(log) as shard:
            entries = await _up_to_last(shard)
        counted = Counter(entry.record.delivery.id for entry in entries)
        assert counted == Counter(dispatched(number).delivery.id for number in fed)
        await log.close()

    async def test_only_one_of_two_router_shard_owners_commits(self, harness: Harness) -> None:
        log = await harness.make(LogSettings(shards=2))
        for number in range(20):
            await log.append(accepted(number))
        stale: dict[int, tuple[RouterShard, list[Input]]] = {}
        owned: dict[int, RouterShard] = {}
        first_stop, second_stop, sleeps = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def hold(shard: RouterShard) -> None:
            """Read, and ignore the revocation for as long as possible."""
            if shard.number not in stale:
                stale[shard.number] = shard, await read_inputs(shard, 5)
            await (sleeps if harness.shards_are_shared else first_stop).wait()

        async def own(shard: RouterShard) -> None:
            owned[shard.number] = shard
            await second_stop.wait()

        first = asyncio.create_task(log.own_router_shards(hold, first_stop))
        await wait_until(lambda: len(stale) == 2, what="two shards of the first owner")
        second = asyncio.create_task(log.own_router_shards(own, second_stop))
        try:
            if not harness.shards_are_shared:
                first_stop.set()
            await wait_until(lambda: owned, what="a shard that has moved")
            ((number, owner), *_) = owned.items()
            old, old_inputs = stale[number]
            inputs = await read_inputs(owner, len(old_inputs))
            assert inputs[: len(old_inputs)] == old_inputs  # not consumed, so read again
            results = await asyncio.gather(
                old.commit([dispatched(1), queue_entry(1), event(1)], old_inputs),
                owner.commit([dispatched(2)], inputs),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [ShardLost, type(None)]
            await old.rewind()  # nor after a rewind
            with pytest.raises(ShardLost):
                await old.commit([dispatched(1)], ())
            await owner.commit([dispatched(LAST)], ())
        finally:
            for stop in (sleeps, first_stop, second_stop):
                stop.set()
            await asyncio.gather(first, second)
        async with delivery_shard_of(log) as delivery:
            assert [entry.record for entry in await _up_to_last(delivery)] == [dispatched(2)]
        async with router_shard_of(log, number) as shard:
            assert await replay_all(shard) == []
            rest = records_of(await shard.read(100, _SHORT))
        assert not [record for record in rest if record in records_of(inputs)]
        await log.close()

    async def test_a_finish_after_close_is_refused_and_left_to_the_next_owner(self, harness: Harness) -> None:
        log = await harness.make(LogSettings())
        async with router_shard_of(log) as router:
            await router.commit([dispatched(1)], [])
        async with delivery_shard_of(log) as shard:
            (entry,) = await read_dispatches(shard, 1)
        with pytest.raises(ShardLost):
            await shard.finish(entry, attempted(1))
        async with delivery_shard_of(log) as shard:
            assert [again.record for again in await read_dispatches(shard, 1)] == [dispatched(1)]
        async with router_shard_of(log) as router:
            assert not await router.read(10, _SHORT)
        await log.close()


async def _reports(router: RouterShard) -> list[DeliveryId]:
    """Attempts in order, up to the last."""
    delivery_ids: list[DeliveryId] = []
    while delivery_id(queue_id(LAST), 1) not in delivery_ids:
        records = records_of(await read_inputs(router, 1))
        delivery_ids += [record.delivery_id for record in records if isinstance(record, Attempted)]
    return delivery_ids


async def _up_to_last(shard: DeliveryShard) -> list[Entry[Dispatched]]:
    entries: list[Entry[Dispatched]] = []
    while True:
        for entry in await read_dispatches(shard, 1):
            if entry.record == dispatched(LAST):
                return entries
            entries.append(entry)
