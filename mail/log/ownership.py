"""Shard ownership within one process, for the adapters without a broker (memory, embedded).

All shards of a role belong to the first caller until its `stop` is set; the next caller waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from mail.log import ShardLost
from mail.tasks import cancel_tasks
from mail.telemetry.log import SHARDS, SHARDS_OWNED


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
        self._lock = asyncio.Lock()
        self._owned_gauge = SHARDS_OWNED.labels(role)
        self._count_gauge = SHARDS.labels(role)

    async def run(
        self,
        open_shards: Callable[[], Sequence[Shard]],
        process: Callable[[Shard], Awaitable[None]],
        stop: asyncio.Event,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        """Wait for ownership, open the shards and process each until `stop`; an exception from a `process` ends this
        call.
        """
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        acquired = asyncio.ensure_future(self._lock.acquire())
        try:
            await asyncio.wait({stopped, acquired}, return_when=asyncio.FIRST_COMPLETED)
            if acquired.done() and not stopped.done():
                if on_ready is not None:
                    on_ready()
                shards = open_shards()
                self._owned_gauge.set(len(shards))
                self._count_gauge.set(len(shards))
                await _process_all(shards, process, stopped)
        finally:
            if not acquired.cancel():
                self._owned_gauge.set(0)
                self._lock.release()
            stopped.cancel()


async def _process_all(
    shards: Sequence[Shard], process: Callable[[Shard], Awaitable[None]], stopped: asyncio.Future[Any]
) -> None:
    tasks = {asyncio.ensure_future(process(shard)) for shard in shards}
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
        for shard in shards:
            shard.close()  # later writes by the former owner raise ShardLost
