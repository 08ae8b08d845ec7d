"""A running delivery worker on an in-memory shard, with a fake courier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from delivery.attempt import AttemptRunner
from delivery.capacity import Capacity
from delivery.courier import Courier, Progress
from delivery.worker import Worker
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import Delivery
from mail.reply import Reply
from mail.settings_roles import DeliverySettings
from tests.support.builders.delivery import FakeShard, FakeSpool

OK = Reply(250, "2.0.0", "ok")

Deliver = Callable[[Delivery, bytes], Awaitable[tuple[Outcome, ...]]]


class FakeCourier:
    """A courier that calls `do`; by default it delivers everything."""

    def __init__(self, do: Deliver | None = None) -> None:
        self._do = do
        self.delivered: list[tuple[Delivery, bytes]] = []
        self.attempts: list[int] = []  # their numbers
        self.active = 0
        self.active_max = 0

    async def deliver(
        self, delivery: Delivery, content: bytes, progress: Progress | None = None
    ) -> tuple[Outcome, ...]:
        self.delivered.append((delivery, content))
        self.attempts.append(0 if progress is None else progress.attempt)
        self.active += 1
        self.active_max = max(self.active_max, self.active)
        try:
            if self._do is not None:
                return await self._do(delivery, content)
            await asyncio.sleep(0)
            return outcomes_for_all(delivery, Delivered, OK)
        finally:
            self.active -= 1

    async def close(self) -> None:
        pass


def outcomes_for_all(
    delivery: Delivery, kind: type[Delivered | Deferred | Failed], reply: Reply
) -> tuple[Outcome, ...]:
    return tuple(kind(recipient.address, reply) for recipient in delivery.message.envelope.recipients)


@asynccontextmanager
async def running_worker(
    courier: FakeCourier,
    shard: FakeShard,
    spool: FakeSpool | None = None,
    drain_seconds: float = 5.0,
    queued_max: int = 5000,
    **settings: Any,
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a worker on the shard; yields its task."""
    spool = spool or FakeSpool()
    capacity = Capacity(DeliverySettings(**settings), spool, queued_max=queued_max)
    async with running_worker_of(capacity, courier, shard, spool, drain_seconds) as task:
        yield task


@asynccontextmanager
async def running_worker_of(
    capacity: Capacity, courier: Courier, shard: FakeShard, spool: FakeSpool, drain_seconds: float = 5.0
) -> AsyncIterator[asyncio.Task[None]]:
    """Run one of several workers that share a capacity."""
    attempts = AttemptRunner(smtp=courier, mailbox=FakeCourier(), spool=spool)
    worker = Worker(shard=shard, attempt_runner=attempts, capacity=capacity, drain_seconds=drain_seconds)
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        shard.revoke()
        async with asyncio.timeout(10):
            await task
