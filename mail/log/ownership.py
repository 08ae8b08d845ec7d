"""Shard ownership within one process, for the adapters without a broker (memory, embedded).

All shards of a role belong to the first caller until its `stop` is set; the next caller waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import structlog

from mail.log import LogUnusable, ShardLost
from mail.log.stopped import STOPPED_SHARDS
from mail.tasks import cancel_tasks, is_set_within
from mail.telemetry.log import SHARDS, SHARDS_OWNED

logger = structlog.get_logger()

RETRY_SECONDS = 60.0  # before a stopped shard is processed again


class RevocableShard(Protocol):
    def revoke(self) -> None:
        """Make `read` raise ShardLost, also in a caller that waits in it."""
        ...

    def close(self) -> None:
        """The shard has no owner any more: later writes through it raise ShardLost."""
        ...


Shard = TypeVar("Shard", bound=RevocableShard)


class ExclusiveOwnership:
    """Exclusive owner of the shards of one role."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._lock = asyncio.Lock()
        self._owned_gauge = SHARDS_OWNED.labels(role)
        self._count_gauge = SHARDS.labels(role)

    async def run(
        self,
        count: Callable[[], int],
        open_shard: Callable[[int], Shard],
        process: Callable[[Shard], Awaitable[None]],
        stop: asyncio.Event,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        """Wait for ownership, open the shards and process each until `stop`. LogUnusable from a `process` stops its
        shard, which is opened again after a while; any other exception ends this call.
        """
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        acquired = asyncio.ensure_future(self._lock.acquire())
        try:
            await asyncio.wait({stopped, acquired}, return_when=asyncio.FIRST_COMPLETED)
            if acquired.done() and not stopped.done():
                if on_ready is not None:
                    on_ready()
                shards = [open_shard(number) for number in range(count())]
                self._owned_gauge.set(len(shards))
                self._count_gauge.set(len(shards))
                await self._process_all(shards, open_shard, process, stopped, stop)
        finally:
            if not acquired.cancel():
                self._owned_gauge.set(0)
                self._lock.release()
            stopped.cancel()

    async def _process_all(
        self,
        shards: list[Shard],
        open_shard: Callable[[int], Shard],
        process: Callable[[Shard], Awaitable[None]],
        stopped: asyncio.Future[Any],
        stop: asyncio.Event,
    ) -> None:
        async def process_shard(number: int) -> None:
            while True:
                try:
                    await process(shards[number])
                except LogUnusable as error:
                    # A record stops its shard, but not the process, which would only start again.
                    logger.error("shard stopped, its mail waits", role=self._role, shard=number, error=str(error))  # noqa: TRY400
                    STOPPED_SHARDS.record(self._role, number, str(error))
                else:
                    return
                shards[number].revoke()
                shards[number].close()
                is_stopping = await is_set_within(stop, RETRY_SECONDS)
                STOPPED_SHARDS.resume(self._role, number)
                if is_stopping:
                    return
                shards[number] = open_shard(number)

        tasks = {asyncio.ensure_future(process_shard(number)) for number in range(len(shards))}
        try:
            waiting: set[asyncio.Future[Any]] = {*tasks, stopped}
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if stopped in done:
                    for shard in shards:
                        shard.revoke()
                for task in done:
                    with suppress(ShardLost):  # revoked
                        task.result()
        finally:
            for shard in shards:
                shard.revoke()
            await cancel_tasks(*tasks)
            for number, shard in enumerate(shards):
                shard.close()  # later writes by the former owner raise ShardLost
                STOPPED_SHARDS.resume(self._role, number)
