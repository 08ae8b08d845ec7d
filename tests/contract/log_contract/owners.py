"""Shard owners that join and leave under load, and a ledger of their actions in the order of one event loop.

A delivery owner finishes its entries while it drains, except for a few, which the next owner gets. A router owner is
stale whenever possible: it commits its inputs whether its shard was revoked or not.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise

from msgspec.structs import replace

from mail.log import DeliveryShard, Entry, Log, LogUnavailable, RouterShard, ShardLost
from mail.message import DeliveryId
from mail.record import Accepted, Dispatched
from tests.contract.log_contract.harness import SOON, Harness
from tests.support.builders.records import attempted
from tests.support.servers.ports import wait_until

_DRAIN_SECONDS = 0.3  # longer than a next owner that does not wait takes to start
_IN_FLIGHT = 3


class OwnershipLedger:
    """Ledger: which owner processed which shard when, and which deliveries were read and finished."""

    def __init__(self) -> None:
        self.active_owners: dict[int, list[str]] = defaultdict(list)
        self.owners_by_shard: dict[int, list[str]] = defaultdict(list)  # its owners in order
        self.overlaps: list[str] = []
        self.deliveries_read: Counter[DeliveryId] = Counter()
        self.finished: set[DeliveryId] = set()
        self.read_after_finish: list[str] = []

    @contextmanager
    def processing(self, number: int, owner: str) -> Iterator[None]:
        others = self.active_owners[number]
        if others:
            self.overlaps.append(f"{owner} started shard {number} while {', '.join(others)} processed it")
        others.append(owner)
        self.owners_by_shard[number].append(owner)
        try:
            yield
        finally:
            others.remove(owner)

    def record_read(self, entry: Entry[Dispatched], owner: str) -> None:
        delivery_id = entry.record.delivery.id
        self.deliveries_read[delivery_id] += 1
        if delivery_id in self.finished:
            self.read_after_finish.append(f"{owner} read {delivery_id} of shard {entry.shard}, which was finished")

    @property
    def handovers(self) -> int:
        """How often a shard changed its owner."""
        return sum(
            previous != current for owners in self.owners_by_shard.values() for previous, current in pairwise(owners)
        )


class Owner:
    """One named member, from `join` until `leave`."""

    def __init__(self, name: str, ledger: OwnershipLedger) -> None:
        self.name = name
        self.ledger = ledger
        self.stop = asyncio.Event()
        self.is_ready = asyncio.Event()
        self.numbers: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    async def _run(self, on_ready: Callable[[], None]) -> None:
        raise NotImplementedError

    @contextmanager
    def processing(self, number: int) -> Iterator[None]:
        self.numbers.add(number)
        try:
            with self.ledger.processing(number, self.name):
                yield
        finally:
            self.numbers.discard(number)

    async def join(self, harness: Harness, before: Owner | None, count: int) -> None:
        """Return when it is certainly a member; where owners share, when both have shards and all shards are owned."""
        self._task = asyncio.create_task(self._run(self.is_ready.set), name=f"owner-{self.name}")
        if before is None:
            await self.has_all(count)
        elif harness.shards_are_shared:
            await wait_until(
                lambda: self.is_ready.is_set() and self._shares_with(before, count),
                what=f"{self.name} as a second owner",
            )
        else:
            await asyncio.sleep(0.05)  # it waits for its turn

    def _shares_with(self, other: Owner, count: int) -> bool:
        return bool(self.numbers and other.numbers) and self.numbers | other.numbers == set(range(count))

    async def has_all(self, count: int) -> None:
        await wait_until(lambda: self.numbers == set(range(count)), what=f"{self.name} as the owner of all shards")

    async def leave(self) -> None:
        self.stop.set()
        assert self._task is not None
        await self._task


class DeliveryOwner(Owner):
    """`unfinished`: number of each shard's entries that it reads and does not finish."""

    def __init__(self, name: str, ledger: OwnershipLedger, log: Log, unfinished: int = 1) -> None:
        super().__init__(name, ledger)
        self._log = log
        self._unfinished = unfinished

    async def _run(self, on_ready: Callable[[], None]) -> None:
        await self._log.own_delivery_shards(self._process, self.stop, on_ready)

    async def _process(self, shard: DeliveryShard) -> None:
        in_flight: list[Entry[Dispatched]] = []
        with self.processing(shard.number):
            while True:
                try:
                    entries = await shard.read(2)
                except LogUnavailable:
                    continue
                except ShardLost:
                    break
                for entry in entries:
                    self.ledger.record_read(entry, self.name)
                in_flight += entries
                while len(in_flight) > _IN_FLIGHT:
                    await self._finish(shard, in_flight.pop(0))
            await asyncio.sleep(_DRAIN_SECONDS)
            while len(in_flight) > self._unfinished:
                await self._finish(shard, in_flight.pop(0))

    async def _finish(self, shard: DeliveryShard, entry: Entry[Dispatched]) -> None:
        await asyncio.sleep(0.01)
        delivery_id = entry.record.delivery.id
        await shard.finish(entry, replace(attempted(), delivery_id=delivery_id))
        self.ledger.finished.add(delivery_id)


class RouterOwner(Owner):
    """Commits one dispatch per message, which `dispatch` makes."""

    def __init__(
        self, name: str, ledger: OwnershipLedger, log: Log, dispatch: Callable[[Accepted], Dispatched]
    ) -> None:
        super().__init__(name, ledger)
        self._log = log
        self._dispatch = dispatch

    async def _run(self, on_ready: Callable[[], None]) -> None:
        await self._log.own_router_shards(self._process, self.stop, on_ready)

    async def _process(self, shard: RouterShard) -> None:
        with self.processing(shard.number):
            while True:
                try:
                    entries = await shard.read(3, SOON)
                    if not entries:
                        continue
                    await asyncio.sleep(0.1)  # meanwhile the shard may be reassigned
                    records = [entry.record for entry in entries]
                    outputs = [self._dispatch(record) for record in records if isinstance(record, Accepted)]
                    await shard.commit(outputs, entries)
                except ShardLost:
                    return
                except LogUnavailable:
                    await _rewind_until_done(shard)


async def _rewind_until_done(shard: RouterShard) -> None:
    while True:
        try:
            await shard.rewind()
        except LogUnavailable:
            await asyncio.sleep(0.05)
        else:
            return


@asynccontextmanager
async def call_repeatedly(feed: Callable[[int], Awaitable[None]]) -> AsyncIterator[list[int]]:
    """Call `feed` with 0, 1, 2 ... until the end of the context. The list has those whose call returned."""
    returned: list[int] = []
    stop = asyncio.Event()

    async def feed_all() -> None:
        while not stop.is_set():
            await feed(len(returned))
            returned.append(len(returned))
            await asyncio.sleep(0.02)

    task = asyncio.create_task(feed_all(), name="feeding")
    try:
        yield returned
    finally:
        stop.set()
        await task
