"""Harness protocol of the log contract, and helpers that own shards, read and query.

A harness opens logs on one store, so `make` finds the records of the previous log, and injects write failures.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol, TypeVar

from msgspec.structs import replace

from mail.log import Damaged, DeliveryShard, Entry, Input, Log, RouterShard
from mail.log.topics import Topic
from mail.record import Accepted, Dispatched, Event, QueueEntry, Record
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
        """Whether all members share a role's shards; otherwise one owns all, and the next waits."""
        ...

    async def make(self, settings: LogSettings) -> Log:
        """Start a log on this harness's store; it finds the records of the previous, closed log."""
        ...

    async def append_frame(self, log: Log, topic: Topic, shard: int, frame: bytes, key: str) -> None:
        """Write raw bytes as the next entry of a shard; `key` is the key that `place` gives such a record. A byte of a
        damaged key is a lone surrogate.
        """
        ...

    def fail_writes(self, log: Log) -> None:
        """Confirm no writes until `repair`."""
        ...

    def repair(self, log: Log) -> None: ...


@asynccontextmanager
async def router_shard_of(log: Log, number: int = 0, seconds: float = 10) -> AsyncIterator[RouterShard]:
    """Own the router's shards for at most `seconds`, and use one of them."""
    async with _owned_shard(log.own_router_shards, number, seconds) as shard:
        yield shard


@asynccontextmanager
async def delivery_shard_of(log: Log, number: int = 0) -> AsyncIterator[DeliveryShard]:
    async with _owned_shard(log.own_delivery_shards, number, 10) as shard:
        yield shard


@asynccontextmanager
async def _owned_shard(own: Callable[..., Awaitable[None]], number: int, seconds: float) -> AsyncIterator[T]:  # type: ignore[type-var]
    stop, owned = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def process(shard: T) -> None:
        if shard.number == number:  # type: ignore[attr-defined]
            owned.set_result(shard)
        await stop.wait()

    owner = asyncio.ensure_future(own(process, stop))
    try:
        async with asyncio.timeout(seconds):
            yield await owned
    finally:
        stop.set()
        await owner


async def read_inputs(shard: RouterShard, count: int, limit: int = 100) -> list[Input]:
    inputs: list[Input] = []
    while len(inputs) < count:
        more = await shard.read(limit, SOON)
        assert more, f"{count - len(inputs)} inputs did not arrive"
        assert len(more) <= limit
        inputs += more
    return inputs


async def read_dispatches(shard: DeliveryShard, count: int) -> list[Entry[Dispatched] | Entry[Damaged]]:
    entries: list[Entry[Dispatched] | Entry[Damaged]] = []
    while len(entries) < count:
        async with asyncio.timeout(5):
            entries += await shard.read(100)
    return entries


async def replay_all(shard: RouterShard) -> list[QueueEntry | Damaged]:
    return [record async for batch in shard.replay() for record in batch]


def records_of(entries: Sequence[Input]) -> list[Record | Damaged]:
    return [entry.record for entry in entries]


async def eventually_equals(query: Callable[[], Awaitable[T]], expected: T) -> None:
    """Another process may see a commit with a delay; its owner sees it at once."""
    end = asyncio.get_running_loop().time() + 5
    while (result := await query()) != expected and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.02)
    assert result == expected


async def events(log: Log, number: int) -> list[Event | Damaged]:
    return [event async for event in log.history(queue_id(number))]


def received_earlier(record: Accepted, days: int) -> Accepted:
    received = record.message.received - timedelta(days=days)
    return replace(record, message=replace(record.message, received=received))
