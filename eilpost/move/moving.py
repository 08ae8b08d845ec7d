"""One run of a move, as `eilpost/move/__init__.py` lays it down: from owning both sides to letting them go.

In charge of the order of commits and of nothing else. Whatever fails leaves as it came (LogUnavailable, ShardLost,
LogUnusable); the caller may run again at once. Next: `eilpost/move/letters.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from eilpost.move.letters import Carrier, Letter, opened, unread
from eilpost.move.owning import Owned, owning
from mail.log import DeliveryShard, Entry, Log, LogUnavailable, LogUnusable, RouterShard
from mail.log.topics import shard_of_message
from mail.message import DeliveryId, Inline, QueueId
from mail.record import Accepted, Attempted, Dispatched, Event, InHand, Pending, Record, Settled, Waiting

BATCH = 500  # records under way at a time
BATCH_BYTES = 16 << 20  # of their contents, about: large ones go fewer at a time
COMMIT_BYTES = 8 << 20  # of one commit on the target, about

_NOW = timedelta(0)
_LOOK_AGAIN = timedelta(milliseconds=200)
_SHOWN = 5

T = TypeVar("T")

Input = Entry[Accepted] | Entry[Attempted]


@dataclass(slots=True)
class Tally:
    """What was moved, over all runs of one command. `known` was on the target already, and only left the source."""

    messages: int = 0
    unread: int = 0
    deliveries: int = 0
    size_bytes: int = 0
    events: int = 0
    known: int = 0


class Progress(Protocol):
    """Whom the mover tells how far it is."""

    def expect(self, letters: int) -> None:
        """So many more are to be moved, about."""
        ...

    def moved(self, letters: int) -> None: ...


class Moving:
    """One run; `tally` goes on from one run to the next."""

    def __init__(
        self,
        source: Log,
        target: Log,
        carrier: Carrier,
        tally: Tally,
        *,
        history: bool,
        progress: Progress,
        batch: int = BATCH,
    ) -> None:
        self._source = source
        self._target = target
        self._carrier = carrier
        self._tally = tally
        self._history = history
        self._progress = progress
        self._batch = batch
        self._turn = asyncio.Lock()  # one batch is under way at a time
        self._there: set[str] = set()  # keys on the target
        self._told: set[str] = set()  # queue ids on the target: their history is there
        self._in_hand: dict[DeliveryId, Pending] = {}
        self._limit = min(batch, BATCH // 10)  # until it is seen how large they are

    async def run(self) -> None:
        """Raises LogUnavailable, ShardLost, LogUnusable, SpoolUnavailable, ServiceError."""
        source, target = self._source, self._target
        async with AsyncExitStack() as stack:
            self._from = await stack.enter_async_context(
                owning(source.route, source.counts.by_queue_id, "the log to move from")
            )
            self._to = await stack.enter_async_context(
                owning(target.route, target.counts.by_queue_id, "the log to move to")
            )
            await all_of(map(self._learn_target, self._to.all()))
            await all_of(map(self._learn_source, self._from.all()))
            self._progress.expect((await source.backlog()).accepted)
            await all_of(map(self._move_inputs, self._from.all()))
            async with owning(source.deliver, source.counts.by_site, "the log to move from") as delivery:
                await self._move_dispatches(delivery)
            await all_of(map(self._move_waiting, self._from.all()))
            await all_of(map(self._move_inputs, self._from.all()))
            await all_of(map(self._see_empty, self._from.all()))
        if self._in_hand:
            raise LogUnusable(_missing(self._in_hand))

    # --- the steps

    async def _learn_target(self, shard: RouterShard) -> None:
        async for lines in shard.replay():
            self._there.update(line.delivery.id for line in lines)
            self._told.update(line.delivery.message.queue_id for line in lines)
        while entries := await shard.take(self._batch, _NOW):
            self._told |= {entry.record.message.queue_id for entry in entries if isinstance(entry.record, Accepted)}
        await shard.rewind()

    async def _learn_source(self, shard: RouterShard) -> None:
        async for lines in shard.replay():
            self._in_hand |= {line.delivery.id: line for line in lines if isinstance(line.state, InHand)}
            self._progress.expect(len(lines))

    async def _move_inputs(self, shard: RouterShard) -> None:
        wait = _NOW
        while True:
            entries: Sequence[Input] = await shard.take(self._limit, wait)
            if entries:
                self._see_size(entries)
                letters = [self._letter_of(entry.record) for entry in entries]
                await self._move([letter for letter in letters if letter is not None], shard, entries)
            elif wait:
                return
            else:
                wait = _LOOK_AGAIN  # what is on its way gets the time

    def _see_size(self, entries: Sequence[Input] | Sequence[Entry[Dispatched]]) -> None:
        each = max(1, sum(_inline_bytes(entry.record) for entry in entries) // max(1, len(entries)))
        self._limit = max(1, min(self._batch, BATCH_BYTES // each))

    def _letter_of(self, record: Accepted | Attempted) -> Letter | None:
        if isinstance(record, Accepted):
            return unread(record)
        line = self._line_in_hand(record.delivery_id, record.number)
        return None if line is None else opened(line, record)

    def _line_in_hand(self, delivery_id: DeliveryId, number: int) -> Pending | None:
        """The line this attempt is about, taken out; None when the attempt is out of date, as the router judges it."""
        line = self._in_hand.get(delivery_id)
        if line is None or line.attempts + 1 != number:
            return None
        return self._in_hand.pop(delivery_id)

    async def _move_dispatches(self, delivery: Owned[DeliveryShard]) -> None:
        """From all shards at once. The router's shards are ours, so nobody dispatches any more: each has an end."""
        working = asyncio.Lock()

        async def read(shard: DeliveryShard) -> None:
            while entries := await shard.take(self._limit, _NOW):
                self._see_size(entries)
                async with working:
                    delivery.check()
                    await self._move_dispatched(shard, entries)

        await all_of(map(read, delivery.all()))

    async def _move_dispatched(self, shard: DeliveryShard, entries: Sequence[Entry[Dispatched]]) -> None:
        by_shard: dict[int, list[Letter]] = {}
        for entry in entries:
            dispatched = entry.record
            line = self._line_in_hand(dispatched.delivery.id, dispatched.number)
            if line is not None:
                owner = shard_of_message(line.delivery.message.queue_id, self._source.counts)
                by_shard.setdefault(owner, []).append(opened(line, dispatched))
        await all_of(self._move(letters, self._from[number], ()) for number, letters in by_shard.items())
        await all_of(shard.finish(entry, _empty_report(entry.record)) for entry in entries)

    async def _move_waiting(self, shard: RouterShard) -> None:
        async for lines in shard.replay():
            waiting = [opened(line) for line in lines if isinstance(line.state, Waiting)]
            for start in range(0, len(waiting), self._batch):
                await self._move(waiting[start : start + self._batch], shard, ())

    async def _see_empty(self, shard: RouterShard) -> None:
        """The proof: read again, from the marks, what the source holds now."""
        await shard.rewind()
        async for lines in shard.replay():
            for line in lines:
                if line.delivery.id not in self._in_hand:
                    raise LogUnavailable(f"{line.delivery.id} is in the log to move from again; is it in use?")
        if await shard.take(1, _NOW):
            raise LogUnavailable("something is unread in the log to move from again; is it in use?")

    # --- one batch

    async def _move(self, letters: Sequence[Letter], shard: RouterShard, consumed: Sequence[Input]) -> None:
        """Write to the target what it has not, then remove all of it from the source."""
        async with self._turn:
            new = {letter.key: letter for letter in letters if not self._is_known(letter)}
            await self._write(list(new.values()))
            self._from.check()
            await shard.commit([Settled(letter.line.delivery.id) for letter in letters if letter.line], consumed)
            self._tally.known += len(letters) - len(new)
            self._progress.moved(len(letters))

    def _is_known(self, letter: Letter) -> bool:
        """An unread message that has open lines on the target was read there, or accepted twice."""
        return letter.queue_id in self._told if letter.line is None else letter.key in self._there

    async def _write(self, letters: Sequence[Letter]) -> None:
        """Each goes through the owner of its shard on the target: had another process become that, it would neither
        see the line nor be stopped by our commit through another shard.
        """
        carried: Sequence[Letter] = await all_of(map(self._carrier.carry, letters))
        parts: dict[int, list[Letter]] = {}
        for letter in carried:
            parts.setdefault(shard_of_message(letter.queue_id, self._target.counts), []).append(letter)
        first = {letter.queue_id: letter for letter in carried if letter.queue_id not in self._told}
        stories = dict(zip(first, await all_of(map(self._story, first.values())), strict=True))
        await all_of(self._write_to(self._to[number], part, stories) for number, part in parts.items())
        self._told |= first.keys()
        self._tally.messages += len(first)
        self._tally.size_bytes += sum(letter.size_bytes for letter in first.values())
        self._tally.events += sum(map(len, stories.values()))

    async def _write_to(
        self, shard: RouterShard, letters: Sequence[Letter], stories: dict[QueueId, Sequence[Event]]
    ) -> None:
        outputs: list[Record] = []
        size = 0
        told: set[QueueId] = set()
        for letter in letters:
            if letter.queue_id not in told:
                told.add(letter.queue_id)
                outputs += stories.get(letter.queue_id, ())
            outputs += letter.records
            size += _inline_bytes(letter.rest)
            if size >= COMMIT_BYTES:
                await shard.commit(outputs, ())
                outputs, size = [], 0
        if outputs:
            await shard.commit(outputs, ())
        self._there.update(letter.key for letter in letters)
        unread_ones = sum(letter.line is None for letter in letters)
        self._tally.unread += unread_ones
        self._tally.deliveries += len(letters) - unread_ones

    async def _story(self, letter: Letter) -> Sequence[Event]:
        """What is told of a message with its first record."""
        if not self._history or letter.line is None:  # what is unread has none
            return ()
        return [event async for event in self._source.history(letter.queue_id)]


def _inline_bytes(record: Accepted | Attempted | Dispatched | None) -> int:
    if isinstance(record, Accepted | Dispatched) and isinstance(record.content, Inline):
        return len(record.content.data)
    return 0


def _empty_report(dispatched: Dispatched) -> Attempted:
    """Only a report finishes a dispatch. This one is about a line that is gone or not in hand: no router heeds it."""
    return Attempted(dispatched.delivery.id, dispatched.number, (), datetime.now(UTC), timedelta(0))


async def all_of(works: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, then raise the first fault: nothing goes on behind the back of who deals with it."""
    results = []
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


def _missing(in_hand: Iterable[DeliveryId]) -> str:
    names = sorted(in_hand)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        f"the log to move from is damaged: {', '.join(names[:_SHOWN])}{more}: in hand, and neither the dispatch nor a"
        " report is there; that was left where it is, and everything else was moved"
    )
