"""Ownership inside one process: a shard has one owner at a time, and whoever owns it tends it until it must go.

For adapters without a broker (memory, embedded), where all shards of a kind go together: the first who asks owns them
until its `stop`, the next waits. Knows nothing of records. Next: `mail/log/memory.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from mail.log import ShardLost
from mail.telemetry.log import SHARDS, SHARDS_OWNED


class Losable(Protocol):
    def lose(self) -> None:
        """From now on `take` raises ShardLost, one that waits included."""
        ...

    def close(self) -> None:
        """Nobody tends it any more: what is still to be written through it raises ShardLost."""
        ...


Shard = TypeVar("Shard", bound=Losable)


class Turn:
    """Who owns the shards that `role` processes."""

    def __init__(self, role: str) -> None:
        self._turn = asyncio.Lock()
        self._owned = SHARDS_OWNED.labels(role)
        self._all = SHARDS.labels(role)

    async def own(
        self,
        gain: Callable[[], Sequence[Shard]],
        tend: Callable[[Shard], Awaitable[None]],
        stop: asyncio.Event,
        joined: Callable[[], None] | None = None,
    ) -> None:
        """Wait for the turn, `gain()` the shards, tend each until `stop`; an exception out of a tend ends it all."""
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        try:
            turn = asyncio.ensure_future(self._turn.acquire())
            try:
                await asyncio.wait({stopped, turn}, return_when=asyncio.FIRST_COMPLETED)
                if turn.done() and not stopped.done():
                    if joined is not None:
                        joined()
                    shards = gain()
                    self._owned.set(len(shards))
                    self._all.set(len(shards))
                    try:
                        await _tend_all(shards, tend, stopped)
                    finally:
                        self._owned.set(0)
            finally:
                if not turn.cancel():
                    self._turn.release()
        finally:
            stopped.cancel()


async def _tend_all(
    shards: Sequence[Shard], tend: Callable[[Shard], Awaitable[None]], stopped: asyncio.Future[Any]
) -> None:
    tasks = {asyncio.ensure_future(tend(shard)) for shard in shards}
    try:
        waiting: set[asyncio.Future[Any]] = {*tasks, stopped}
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if stopped in done:
                for shard in shards:
                    shard.lose()
            for task in done:
                with suppress(ShardLost):  # it was told to go, and went
                    task.result()
    finally:
        for shard in shards:
            shard.lose()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        for shard in shards:
            shard.close()  # whoever kept it is not the owner any more
