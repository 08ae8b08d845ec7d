"""Ownership inside one process: a shard has one owner at a time, and whoever owns it tends it until it must go.

For adapters without a broker (memory, embedded), where all shards of a kind go together: the first who asks owns them
until its `stop`, the next waits. Knows nothing of records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from mail.log import ShardLost
from mail.telemetry.log import SHARDS, SHARDS_OWNED


class RevocableShard(Protocol):
    def revoke(self) -> None:
        """From now on `take` raises ShardLost, one that waits included."""
        ...

    def close(self) -> None:
        """Nobody tends it any more: what is still to be written through it raises ShardLost."""
        ...


Shard = TypeVar("Shard", bound=RevocableShard)


class ExclusiveOwnership:
    """Who owns the shards that `role` processes."""

    def __init__(self, role: str) -> None:
        self._lock = asyncio.Lock()
        self._owned_gauge = SHARDS_OWNED.labels(role)
        self._all = SHARDS.labels(role)

    async def run(
        self,
        open_shards: Callable[[], Sequence[Shard]],
        process: Callable[[Shard], Awaitable[None]],
        stop: asyncio.Event,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        """Wait for the turn, `gain()` the shards, tend each until `stop`; an exception out of a tend ends it all."""
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        try:
            acquired = asyncio.ensure_future(self._lock.acquire())
            try:
                await asyncio.wait({stopped, acquired}, return_when=asyncio.FIRST_COMPLETED)
                if acquired.done() and not stopped.done():
                    if on_ready is not None:
                        on_ready()
                    shards = open_shards()
                    self._owned_gauge.set(len(shards))
                    self._all.set(len(shards))
                    try:
                        await _process_all(shards, process, stopped)
                    finally:
                        self._owned_gauge.set(0)
            finally:
                if not acquired.cancel():
                    self._lock.release()
        finally:
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
                with suppress(ShardLost):  # it was told to go, and went
                    task.result()
    finally:
        for shard in shards:
            shard.revoke()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        for shard in shards:
            shard.close()  # whoever kept it is not the owner any more
