"""The chores: what they call, that they go on after a failure, that they end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import cast

from eilpost.housekeeping import Housekeeping
from mail.log import Backlog, Log, LogUnavailable
from mail.settings import SpoolSettings
from mail.telemetry import REGISTRY
from tests.support.ports import wait_until


class _Log:
    def __init__(self) -> None:
        self.purges = 0

    async def purge(self) -> None:
        self.purges += 1
        raise LogUnavailable("not now")

    async def backlog(self) -> Backlog:
        return Backlog(accepted=3, dispatched=2, attempted=1)


class _Spool:
    def __init__(self) -> None:
        self.swept: list[datetime] = []

    async def keep(self, content: bytes) -> None:
        raise NotImplementedError

    async def sweep(self, older_than: datetime) -> int:
        self.swept.append(older_than)
        return 1


async def test_the_chores_are_done_at_start_and_end_at_stop() -> None:
    log, spool = _Log(), _Spool()
    role = Housekeeping(settings=SpoolSettings(), log=cast("Log", log), spool=spool)  # type: ignore[arg-type]
    ready, stop = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(role.run(ready.set, stop))
    await ready.wait()
    await wait_until(lambda: spool.swept and log.purges, what="the first chores")
    age = datetime.now(UTC) - spool.swept[0]
    assert timedelta(days=7) <= age < timedelta(days=7, minutes=5)
    assert REGISTRY.get_sample_value("eilpost_consumer_lag_records", {"topic": "accepted"}) == 3
    stop.set()
    await asyncio.wait_for(running, 5)
