"""A worker at work on shards in memory, with a courier that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from delivery.attempt import Attempts
from delivery.capacity import Capacity
from delivery.worker import Worker
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import Delivery
from mail.reply import Reply
from mail.settings import DeliverySettings
from tests.support.delivering import FakeShard, FakeSpool

OK = Reply(250, "2.0.0", "ok")

Carry = Callable[[Delivery, bytes], Awaitable[tuple[Outcome, ...]]]


class FakeCourier:
    """Does what `do` says; by default takes everything."""

    def __init__(self, do: Carry | None = None) -> None:
        self._do = do
        self.carried: list[tuple[Delivery, bytes]] = []
        self.at_work = 0
        self.most = 0

    async def carry(self, delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        self.carried.append((delivery, content))
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            if self._do is not None:
                return await self._do(delivery, content)
            await asyncio.sleep(0)
            return all_of(delivery, Delivered, OK)
        finally:
            self.at_work -= 1

    async def close(self) -> None:
        pass


def all_of(delivery: Delivery, kind: type[Delivered | Deferred | Failed], reply: Reply) -> tuple[Outcome, ...]:
    return tuple(kind(recipient.address, reply) for recipient in delivery.message.envelope.recipients)


@asynccontextmanager
async def working(
    courier: FakeCourier,
    shard: FakeShard,
    spool: FakeSpool | None = None,
    drain_seconds: float = 5.0,
    parked_max: int = 5000,
    **settings: Any,
) -> AsyncIterator[asyncio.Task[None]]:
    """A worker on the shard, and its task."""
    spool = spool or FakeSpool()
    capacity = Capacity(DeliverySettings(**settings), spool, parked_max=parked_max)
    async with working_within(capacity, courier, shard, spool, drain_seconds) as task:
        yield task


@asynccontextmanager
async def working_within(
    capacity: Capacity, courier: FakeCourier, shard: FakeShard, spool: FakeSpool, drain_seconds: float = 5.0
) -> AsyncIterator[asyncio.Task[None]]:
    """One of several workers that share a capacity."""
    attempts = Attempts(smtp=courier, mailbox=FakeCourier(), spool=spool)
    worker = Worker(shard=shard, attempts=attempts, capacity=capacity, drain_seconds=drain_seconds)
    task = asyncio.create_task(worker.tend())
    try:
        yield task
    finally:
        shard.lose()
        async with asyncio.timeout(10):
            await task
