"""A mover that dies: at the n-th change of either log, before it is made or after, and with it everything it does.

`moved` runs the mover through such logs. Next: `eilpost/move/moving.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from eilpost.move.letters import Carrier
from eilpost.move.moving import Moving, Tally
from mail.record import Attempted


class Quiet:
    """Nobody looks at the progress."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.said: list[str] = []

    def expect(self, letters: int) -> None:
        self.total += letters

    def moved(self, letters: int) -> None:
        self.done += letters

    def say(self, text: str) -> None:
        self.said.append(text)


class Killed(BaseException):
    """The mover dies here."""


class Mortal:
    """A log through which the `at`-th change of the world kills the mover, before it is made or after."""

    def __init__(self, log: Any, life: Life) -> None:
        self._log = log
        self._life = life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def route(self, tend: Any, stop: asyncio.Event, joined: Any = None) -> None:
        await self._log.route(lambda shard: tend(MortalShard(shard, self._life)), stop)

    async def deliver(self, tend: Any, stop: asyncio.Event, joined: Any = None) -> None:
        await self._log.deliver(lambda shard: tend(MortalShard(shard, self._life)), stop)


class MortalShard:
    def __init__(self, shard: Any, life: Life) -> None:
        self._shard = shard
        self._life = life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)

    async def commit(self, outputs: Any, consumed: Any) -> None:
        await self._life.live(lambda: self._shard.commit(outputs, consumed))

    async def finish(self, entry: Any, attempted: Attempted) -> None:
        await self._life.live(lambda: self._shard.finish(entry, attempted))


class Life:
    """Counts changes; at number `at` it ends, with `how`, and nothing more changes."""

    def __init__(self, at: int | None = None, *, after: bool = False, how: BaseException | None = None) -> None:
        self.at = at
        self.after = after
        self.how = how or Killed()
        self.changes = 0
        self.is_over = False

    async def live(self, change: Callable[[], Awaitable[None]]) -> None:
        if self.is_over and isinstance(self.how, Killed):
            raise self.how
        self.changes += 1
        ends = self.changes == self.at
        if not ends or self.after:
            await change()
        if ends:
            self.is_over = True
            raise self.how


SMALL = 7  # records in a batch: many commits in a small queue


async def moved(source: Any, target: Any, carrier: Carrier, life: Life | None = None, batch: int = SMALL) -> Tally:
    tally = Tally()
    life = life or Life()
    moving = Moving(
        Mortal(source, life),  # type: ignore[arg-type]
        Mortal(target, life),  # type: ignore[arg-type]
        carrier,
        tally,
        history=True,
        progress=Quiet(),
        batch=batch,
    )
    await moving.run()
    return tally
