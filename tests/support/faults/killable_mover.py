"""A queue mover that is killed before or after its n-th write to either log.

`moved` runs the mover on such logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from eilpost.move.items import ContentCopier
from eilpost.move.run import MoveRun, MoveTotals
from mail.record import Attempted


class RecordingProgress:
    """Discards the progress."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.messages: list[str] = []

    def __call__(self, found: int, moved: int) -> None:
        self.total += found
        self.done += moved

    def print_message(self, text: str) -> None:
        self.messages.append(text)


class Killed(BaseException):
    """The mover is killed here."""


class KillableLog:
    """A log wrapper: the `at`-th write kills the mover, before or after the write is applied."""

    def __init__(self, log: Any, life: KillSwitch) -> None:
        self._log = log
        self._kill_switch = life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def own_router_shards(self, process: Any, stop: asyncio.Event, on_ready: Any = None) -> None:
        await self._log.own_router_shards(lambda shard: process(KillableShard(shard, self._kill_switch)), stop)

    async def own_delivery_shards(self, process: Any, stop: asyncio.Event, on_ready: Any = None) -> None:
        await self._log.own_delivery_shards(lambda shard: process(KillableShard(shard, self._kill_switch)), stop)


class KillableShard:
    def __init__(self, shard: Any, life: KillSwitch) -> None:
        self._shard = shard
        self._kill_switch = life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)

    async def commit(self, outputs: Any, consumed: Any) -> None:
        await self._kill_switch.apply(lambda: self._shard.commit(outputs, consumed))

    async def finish(self, entry: Any, attempted: Attempted) -> None:
        await self._kill_switch.apply(lambda: self._shard.finish(entry, attempted))


class KillSwitch:
    """Counts writes; at number `at` it kills the mover with `how`, and no later write is applied."""

    def __init__(self, at: int | None = None, *, after: bool = False, error: BaseException | None = None) -> None:
        self.at = at
        self.after = after
        self.error = error or Killed()
        self.changes = 0
        self.is_dead = False

    async def apply(self, change: Callable[[], Awaitable[None]]) -> None:
        if self.is_dead and isinstance(self.error, Killed):
            raise self.error
        self.changes += 1
        ends = self.changes == self.at
        if not ends or self.after:
            await change()
        if ends:
            self.is_dead = True
            raise self.error


SMALL = 7  # records per batch: many commits for a small queue


async def run_move(
    source: Any, target: Any, copier: ContentCopier, kill_switch: KillSwitch | None = None, batch: int = SMALL
) -> MoveTotals:
    totals = MoveTotals()
    kill_switch = kill_switch or KillSwitch()
    move_run = MoveRun(
        KillableLog(source, kill_switch),  # type: ignore[arg-type]
        KillableLog(target, kill_switch),  # type: ignore[arg-type]
        copier,
        totals,
        history=True,
        progress=RecordingProgress(),
        batch=batch,
    )
    await move_run.run()
    return totals
