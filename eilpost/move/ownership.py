"""Ownership of all router or delivery shards of a log at once.

`check()` raises ShardLost as soon as another process may own any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from mail.log import DeliveryShard, LogUnavailable, RouterShard, ShardLost

_JOIN_SECONDS = 40.0


S = TypeVar("S", RouterShard, DeliveryShard)
OwnShards = Callable[[Callable[[S], Awaitable[None]], asyncio.Event], Awaitable[None]]


class OwnedShards(Generic[S]):
    """The owned shards by number."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._shards: dict[int, S] = {}
        self._lost = False
        self.complete = asyncio.Event()
        self.release = asyncio.Event()

    async def process(self, shard: S) -> None:
        if shard.number in self._shards:
            self._lost = True  # it was revoked and assigned again: the state read so far is stale
        self._shards[shard.number] = shard
        if len(self._shards) == self._count:
            self.complete.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self._lost = True
            raise

    def check(self) -> None:
        if self._lost:
            raise ShardLost

    def __getitem__(self, number: int) -> S:
        self.check()
        return self._shards[number]

    def all(self) -> Sequence[S]:
        self.check()
        return [self._shards[number] for number in range(self._count)]


@asynccontextmanager
async def own_all_shards(run: OwnShards[S], count: int, log_name: str) -> AsyncIterator[OwnedShards[S]]:
    """Own the `count` shards of `run` (a log's `own_router_shards` or `own_delivery_shards`). Raises LogUnavailable."""
    owned: OwnedShards[S] = OwnedShards(count)
    stop = asyncio.Event()
    running = asyncio.ensure_future(run(owned.process, stop))
    complete = asyncio.ensure_future(owned.complete.wait())
    try:
        await asyncio.wait({running, complete}, timeout=_JOIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        if not complete.done():
            raise LogUnavailable(f"{log_name}: not all shards were assigned within {_JOIN_SECONDS:g} s; is it in use?")
        yield owned
    finally:
        complete.cancel()
        stop.set()
        owned.release.set()
        await asyncio.gather(running, return_exceptions=True)
