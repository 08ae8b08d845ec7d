"""Shard ownership within one process: a shard that a record stops is opened again, and others continue."""

from __future__ import annotations

import asyncio

import pytest

from mail.log import LogUnusable, ShardLost, ownership
from mail.log.ownership import ExclusiveOwnership
from mail.log.stopped import STOPPED_SHARDS
from tests.support.servers.ports import wait_until


class Shard:
    def __init__(self, number: int) -> None:
        self.number = number
        self.lost = asyncio.Event()
        self.is_closed = False

    def revoke(self) -> None:
        self.lost.set()

    def close(self) -> None:
        self.is_closed = True


class Owner:
    """Opens two shards; `process` raises the next of `errors` in shard 1, then waits until the shard is revoked."""

    def __init__(self, *errors: Exception) -> None:
        self.opened: list[Shard] = []
        self.stop = asyncio.Event()
        self._errors = list(errors)
        self.task = asyncio.ensure_future(
            ExclusiveOwnership("router").run(lambda: 2, self._open, self._process, self.stop)
        )

    def _open(self, number: int) -> Shard:
        self.opened.append(Shard(number))
        return self.opened[-1]

    async def _process(self, shard: Shard) -> None:
        if shard.number == 1 and self._errors:
            raise self._errors.pop(0)
        await shard.lost.wait()
        raise ShardLost


async def test_a_record_stops_its_shard_until_it_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "RETRY_SECONDS", 0.05)
    owner = Owner(LogUnusable("its version is 9"), LogUnusable("its version is 9"))
    await wait_until(lambda: len(owner.opened) == 4)
    first, stopped, again, last = owner.opened
    assert [shard.number for shard in owner.opened] == [0, 1, 1, 1]
    assert (stopped.is_closed, again.is_closed) == (True, True)
    await wait_until(lambda: not STOPPED_SHARDS.reasons())
    assert [shard.lost.is_set() for shard in (first, last)] == [False, False]
    owner.stop.set()
    await owner.task
    assert (first.is_closed, last.is_closed) == (True, True)


async def test_a_stopped_shard_is_listed_and_ends_with_the_process() -> None:
    owner = Owner(LogUnusable("its version is 9"))
    await wait_until(lambda: list(STOPPED_SHARDS.reasons()) == ["router, shard 1: its version is 9"])
    owner.stop.set()
    await owner.task
    assert not STOPPED_SHARDS.reasons()


async def test_another_error_ends_the_ownership() -> None:
    owner = Owner(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        await owner.task
    assert [shard.is_closed for shard in owner.opened] == [True, True]
