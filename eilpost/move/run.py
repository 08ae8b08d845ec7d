"""One run of a move: the steps and the order of commits of docs/migrate.md, "How it works".

After an error (LogUnavailable, ShardLost, LogUnusable) the caller may run again immediately.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, overload

from eilpost.move.items import ContentCopier, MoveItem, item_of_accepted, item_of_queue_entry
from eilpost.move.ownership import OwnedShards, own_all_shards
from mail.log import Damaged, DeliveryShard, Entry, Log, LogUnavailable, LogUnusable, RouterShard
from mail.log.topics import shard_of_message
from mail.message import DeliveryId, Inline, QueueId
from mail.record import Accepted, Active, Attempted, Dispatched, Event, QueueEntry, QueueTombstone, Record, Waiting

BATCH = 500  # records per batch
BATCH_BYTES = 16 << 20  # approximate content per batch
COMMIT_BYTES = 8 << 20  # approximate size of one commit on the target

_NOW = timedelta(0)
_RETRY_WAIT = timedelta(milliseconds=200)
_SHOWN = 5

T = TypeVar("T")
Progress = Callable[[int, int], object]  # called with the items found (approximately) and moved since the last call


@dataclass(slots=True)
class MoveTotals:
    """What was moved, over all runs of a command. `known`: already on the target, only removed from the source. `lost`:
    moved without content.
    """

    messages: int = 0
    unread: int = 0
    deliveries: int = 0
    size_bytes: int = 0
    events: int = 0
    known: int = 0
    lost: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class MoveRun:
    """One run; `totals` accumulate over the runs."""

    source: Log
    target: Log
    copier: ContentCopier
    totals: MoveTotals
    _: KW_ONLY
    history: bool
    progress: Progress
    batch: int = BATCH

    def __post_init__(self) -> None:
        self._batch_lock = asyncio.Lock()  # one batch at a time
        self._target_keys: set[str] = set()  # keys on the target
        self._target_messages: set[str] = set()  # queue ids whose history is on the target
        self._active: dict[DeliveryId, QueueEntry] = {}
        self._limit = min(self.batch, BATCH // 10)  # until the average size is known

    async def run(self) -> None:
        """Raises LogUnavailable, ShardLost, LogUnusable, SpoolUnavailable, ServiceError."""
        source, target = self.source, self.target
        async with (
            own_all_shards(
                source.own_router_shards, source.counts.by_queue_id, "the log to move from"
            ) as source_shards,
            own_all_shards(target.own_router_shards, target.counts.by_queue_id, "the log to move to") as target_shards,
        ):
            self._source_shards, self._target_shards = source_shards, target_shards
            await gather_all(map(self._load_target, self._target_shards.all()))
            await gather_all(map(self._load_source, self._source_shards.all()))
            self.progress((await source.backlog()).accepted, 0)
            await gather_all(map(self._move_inputs, self._source_shards.all()))
            async with own_all_shards(
                source.own_delivery_shards, source.counts.of_dispatched, "the log to move from"
            ) as delivery:
                await self._move_dispatches(delivery)
            await gather_all(map(self._move_waiting, self._source_shards.all()))
            await gather_all(map(self._move_inputs, self._source_shards.all()))
            await gather_all(map(self._verify_empty, self._source_shards.all()))
        if self._active:
            raise LogUnusable(_missing_text(self._active))

    # --- the steps

    async def _load_target(self, shard: RouterShard) -> None:
        async for batch in _replay(shard):
            self._target_keys.update(queue_entry.delivery.id for queue_entry in batch)
            self._target_messages.update(queue_entry.delivery.message.queue_id for queue_entry in batch)
        while entries := await _read(shard, self.batch, _NOW):
            self._target_messages |= {
                entry.record.message.queue_id for entry in entries if isinstance(entry.record, Accepted)
            }
        await shard.rewind()

    async def _load_source(self, shard: RouterShard) -> None:
        async for batch in _replay(shard):
            self._active |= {entry.delivery.id: entry for entry in batch if isinstance(entry.state, Active)}
            self.progress(len(batch), 0)

    async def _move_inputs(self, shard: RouterShard) -> None:
        wait = _NOW
        while True:
            entries = await _read(shard, self._limit, wait)
            if entries:
                self._adapt_limit(entries)
                items = [self._item_of(entry.record) for entry in entries]
                await self._move([item for item in items if item is not None], shard, entries)
            elif wait:
                return
            else:
                wait = _RETRY_WAIT  # for records in transit

    def _adapt_limit(self, entries: Sequence[Entry[Accepted] | Entry[Attempted]] | Sequence[Entry[Dispatched]]) -> None:
        average_bytes = max(1, sum(_inline_bytes(entry.record) for entry in entries) // max(1, len(entries)))
        self._limit = max(1, min(self.batch, BATCH_BYTES // average_bytes))

    def _item_of(self, record: Accepted | Attempted) -> MoveItem | None:
        if isinstance(record, Accepted):
            return item_of_accepted(record)
        queue_entry = self._take_active(record.delivery_id, record.number)
        return None if queue_entry is None else item_of_queue_entry(queue_entry, record)

    def _take_active(self, delivery_id: DeliveryId, number: int) -> QueueEntry | None:
        """Remove and return the queue entry of this attempt; None when the attempt is out of date."""
        queue_entry = self._active.get(delivery_id)
        if queue_entry is None or queue_entry.attempts + 1 != number:
            return None
        return self._active.pop(delivery_id)

    async def _move_dispatches(self, delivery: OwnedShards[DeliveryShard]) -> None:
        """Move from all shards concurrently. They end: the router shards are owned, so nothing is dispatched."""
        working = asyncio.Lock()

        async def read(shard: DeliveryShard) -> None:
            while entries := await _read(shard, self._limit, _NOW):
                self._adapt_limit(entries)
                async with working:
                    delivery.check()
                    await self._move_dispatched(shard, entries)

        await gather_all(map(read, delivery.all()))

    async def _move_dispatched(self, shard: DeliveryShard, entries: Sequence[Entry[Dispatched]]) -> None:
        items_by_shard: dict[int, list[MoveItem]] = {}
        for entry in entries:
            dispatched = entry.record
            queue_entry = self._take_active(dispatched.delivery.id, dispatched.number)
            if queue_entry is not None:
                owner = shard_of_message(queue_entry.delivery.message.queue_id, self.source.counts)
                items_by_shard.setdefault(owner, []).append(item_of_queue_entry(queue_entry, dispatched))
        await gather_all(self._move(items, self._source_shards[number], ()) for number, items in items_by_shard.items())
        await gather_all(shard.finish(entry, _empty_report(entry.record)) for entry in entries)

    async def _move_waiting(self, shard: RouterShard) -> None:
        async for batch in _replay(shard):
            waiting = [item_of_queue_entry(entry) for entry in batch if isinstance(entry.state, Waiting)]
            for start in range(0, len(waiting), self.batch):
                await self._move(waiting[start : start + self.batch], shard, ())

    async def _verify_empty(self, shard: RouterShard) -> None:
        """Verify that the source is empty: read it again from the committed offsets."""
        await shard.rewind()
        async for batch in _replay(shard):
            for queue_entry in batch:
                if queue_entry.delivery.id not in self._active:
                    raise LogUnavailable(f"{queue_entry.delivery.id} reappeared in the log to move from; is it in use?")
        if await shard.read(1, _NOW):
            raise LogUnavailable("the log to move from has new unread records; is it in use?")

    # --- one batch

    async def _move(
        self, items: Sequence[MoveItem], shard: RouterShard, consumed: Sequence[Entry[Accepted] | Entry[Attempted]]
    ) -> None:
        """Write the items that the target does not have, then remove all items from the source."""
        async with self._batch_lock:
            new = {item.key: item for item in items if not self._is_known(item)}
            await self._write(list(new.values()))
            self._source_shards.check()
            await shard.commit(
                [QueueTombstone(item.queue_entry.delivery.id) for item in items if item.queue_entry], consumed
            )
            self.totals.known += len(items) - len(new)
            self.progress(0, len(items))

    def _is_known(self, item: MoveItem) -> bool:
        """An unread message with open deliveries on the target was routed there, or accepted twice."""
        return item.queue_id in self._target_messages if item.queue_entry is None else item.key in self._target_keys

    async def _write(self, items: Sequence[MoveItem]) -> None:
        """Write each item through its own shard on the target, so that the commit is fenced if another process became
        the owner.
        """
        copied: Sequence[MoveItem] = await gather_all(map(self.copier.copy, items))
        items_by_shard: dict[int, list[MoveItem]] = {}
        for item in copied:
            items_by_shard.setdefault(shard_of_message(item.queue_id, self.target.counts), []).append(item)
        first = {item.queue_id: item for item in copied if item.queue_id not in self._target_messages}
        histories = dict(zip(first, await gather_all(map(self._history_of, first.values())), strict=True))
        await gather_all(
            self._write_to(self._target_shards[number], part, histories) for number, part in items_by_shard.items()
        )
        self._target_messages |= first.keys()
        self.totals.messages += len(first)
        self.totals.size_bytes += sum(item.size_bytes for item in first.values())
        self.totals.events += sum(map(len, histories.values()))

    async def _write_to(
        self, shard: RouterShard, items: Sequence[MoveItem], histories: dict[QueueId, Sequence[Event]]
    ) -> None:
        outputs: list[Record] = []
        size = 0
        written: set[QueueId] = set()
        for item in items:
            if item.queue_id not in written:
                written.add(item.queue_id)
                outputs += histories.get(item.queue_id, ())
            outputs += item.records
            size += _inline_bytes(item.record)
            if size >= COMMIT_BYTES:
                await shard.commit(outputs, ())
                outputs, size = [], 0
        if outputs:
            await shard.commit(outputs, ())
        self._target_keys.update(item.key for item in items)
        unread = sum(item.queue_entry is None for item in items)
        self.totals.unread += unread
        self.totals.deliveries += len(items) - unread

    async def _history_of(self, item: MoveItem) -> Sequence[Event]:
        """The events that are moved with the first record of a message."""
        if not self.history or item.queue_entry is None:  # an unread message has no history
            return ()
        return [event async for event in self.source.history(item.queue_id) if not isinstance(event, Damaged)]


async def _replay(shard: RouterShard) -> AsyncIterator[Sequence[QueueEntry]]:
    async for batch in shard.replay():
        yield [_intact(entry) for entry in batch]


@overload
async def _read(shard: RouterShard, limit: int, wait: timedelta) -> Sequence[Entry[Accepted] | Entry[Attempted]]: ...
@overload
async def _read(shard: DeliveryShard, limit: int, wait: timedelta) -> Sequence[Entry[Dispatched]]: ...
async def _read(shard: RouterShard | DeliveryShard, limit: int, wait: timedelta) -> Sequence[Any]:
    entries = await shard.read(limit, wait)
    for entry in entries:
        _intact(entry.record)
    return entries


def _intact(record: T | Damaged) -> T:
    """The record, if it is not damaged. The router puts a damaged one into quarantine, where it can be moved."""
    if isinstance(record, Damaged):
        raise LogUnusable(
            f"the record at {record.position} is damaged ({record.reason}): start eilpost on this log, which puts the"
            " record into quarantine, stop it, and run the command again"
        )
    return record


def _inline_bytes(record: Accepted | Attempted | Dispatched | None) -> int:
    if isinstance(record, Accepted | Dispatched) and isinstance(record.content, Inline):
        return len(record.content.data)
    return 0


def _empty_report(dispatched: Dispatched) -> Attempted:
    """A report to finish a dispatch of a removed delivery; the router ignores it."""
    return Attempted(dispatched.delivery.id, dispatched.number, (), datetime.now(UTC), timedelta(0))


async def gather_all(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, then raise the first error, so that nothing runs on after an error."""
    results = []
    for result in await asyncio.gather(*awaitables, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


def _missing_text(active: Iterable[DeliveryId]) -> str:
    names = sorted(active)
    others = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        f"the log to move from is damaged: {', '.join(names[:_SHOWN])}{others}: active without a dispatch or report;"
        " not moved, everything else was moved"
    )
