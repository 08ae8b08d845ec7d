"""What the log contract needs of an adapter, and how its tests own, take and ask.

A harness makes logs on one store: `make` finds what the last log left there; it breaks and mends what lies below.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Protocol, TypeVar

from mail.log import (
    DeliveryShard,
    Entry,
    Log,
    RouterShard,
)
from mail.log.topics import Topic
from mail.record import Accepted, Attempted, Dispatched, Event, Pending, Record
from mail.settings import LogSettings
from tests.support.builders.records import (
    queue_id,
)

SOON = timedelta(seconds=5)
NOW = timedelta(0)
T = TypeVar("T")


class Harness(Protocol):
    @property
    def shards_are_shared(self) -> bool:
        """Whether the shards of a kind are spread over all who ask for them; else one owns all, and the next waits for
        its turn.
        """
        ...

    async def make(self, settings: LogSettings) -> Log:
        """A started log on this harness's store; after `close()` of the last one, it finds what that one left."""
        ...

    async def append_frame(self, log: Log, topic: Topic, shard: int, frame: bytes, key: str) -> None:
        """Write raw bytes as the next entry of a shard; `key` as `place` would have it for a record there."""
        ...

    def fail_writes(self, log: Log) -> None:
        """From now on nothing is confirmed, until `mend`."""
        ...

    def repair(self, log: Log) -> None: ...


@asynccontextmanager
async def router_shard_of(log: Log, number: int = 0, seconds: float = 10) -> AsyncIterator[RouterShard]:
    """Own the router's shards; use one of them, no longer than so."""
    async with _owned_shard(log.own_router_shards, number, seconds) as shard:
        yield shard


@asynccontextmanager
async def delivery_shard_of(log: Log, number: int = 0) -> AsyncIterator[DeliveryShard]:
    async with _owned_shard(log.own_delivery_shards, number, 10) as shard:
        yield shard


@asynccontextmanager
async def _owned_shard(own: Callable[..., Awaitable[None]], number: int, seconds: float) -> AsyncIterator[T]:  # type: ignore[type-var]
    stop, found = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def process(shard: T) -> None:
        if shard.number == number:  # type: ignore[attr-defined]
            found.set_result(shard)
        await stop.wait()

    owner = asyncio.ensure_future(own(process, stop))
    try:
        async with asyncio.timeout(seconds):
            yield await found
    finally:
        stop.set()
        await owner


async def read_inputs(shard: RouterShard, count: int, limit: int = 100) -> list[Entry[Accepted] | Entry[Attempted]]:
    inputs: list[Entry[Accepted] | Entry[Attempted]] = []
    while len(inputs) < count:
        more = await shard.read(limit, SOON)
        assert more, f"{count - len(inputs)} inputs did not come"
        assert len(more) <= limit
        inputs += more
    return inputs


async def read_dispatches(shard: DeliveryShard, count: int) -> list[Entry[Dispatched]]:
    entries: list[Entry[Dispatched]] = []
    while len(entries) < count:
        async with asyncio.timeout(5):
            entries += await shard.read(100)
    return entries


async def replay_all(shard: RouterShard) -> list[Pending]:
    return [line async for batch in shard.replay() for line in batch]


def records_of(entries: Sequence[Entry[Accepted] | Entry[Attempted]]) -> list[Record]:
    return [entry.record for entry in entries]


async def eventually_equals(query: Callable[[], Awaitable[T]], wanted: T) -> None:
    """What was committed may be seen by somebody who only asks a moment later; by its owner it is seen at once."""
    end = asyncio.get_running_loop().time() + 5
    while (found := await query()) != wanted and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.02)
    assert found == wanted


async def events(log: Log, number: int) -> list[Event]:
    return [event async for event in log.history(queue_id(number))]


def received_earlier(record: Accepted, days: int) -> Accepted:
    received = record.message.received - timedelta(days=days)
    return replace(record, message=replace(record.message, received=received))
