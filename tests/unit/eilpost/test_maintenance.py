"""Maintenance tasks: their calls, their retries after a failure, their end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
import structlog
from msgspec.structs import replace

from eilpost.maintenance import ORDER_TOLERANCE, Maintenance
from mail.log import Backlog, Log, LogUnavailable, LogUnusable
from mail.log.codec import encode
from mail.log.queue_summary import QueueSummary
from mail.record import QueueEntry
from mail.settings import SpoolSettings
from mail.telemetry import REGISTRY
from tests.support.builders.records import queue_entry
from tests.support.servers.ports import wait_until


class _Log:
    def __init__(self, *lines: QueueEntry) -> None:
        self.purges = 0
        self.lines = lines
        self.unreadable = False
        self.reads = 0
        self.unread: datetime | None = None

    async def oldest_unconsumed(self) -> datetime | None:
        return self.unread

    async def summarize_queue(self, summary: QueueSummary) -> None:
        self.reads += 1
        for line in self.lines:
            summary.add(encode(line) or b"")
        if self.unreadable:
            raise LogUnusable("a line cannot be read")

    async def purge(self) -> None:
        self.purges += 1
        raise LogUnavailable("not now")

    async def backlog(self) -> Backlog:
        return Backlog(accepted=3, dispatched=2, attempted=1)


class _Spool:
    def __init__(self) -> None:
        self.swept: list[datetime] = []

    async def put(self, content: bytes) -> None:
        raise NotImplementedError

    async def sweep(self, older_than: datetime) -> int:
        self.swept.append(older_than)
        return 1


def _role(log: _Log, spool: _Spool) -> Maintenance:
    return Maintenance(settings=SpoolSettings(), log=cast("Log", log), spool=spool)  # type: ignore[arg-type]


async def test_tasks_run_at_start_and_end_at_stop() -> None:
    log, spool = _Log(), _Spool()
    role = _role(log, spool)
    ready, stop = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(role.run(ready.set, stop))
    await ready.wait()
    await wait_until(lambda: log.purges, what="the first purge")
    assert REGISTRY.get_sample_value("eilpost_consumer_lag_records", {"topic": "accepted"}) == 3
    stop.set()
    await asyncio.wait_for(running, 5)
    assert spool.swept == []  # earlier accepted messages may not be in the queue yet


async def test_sweep_uses_the_age_limit() -> None:
    spool = _Spool()
    await _role(_Log(_line(timedelta(days=1))), spool).sweep()
    age = datetime.now(UTC) - spool.swept[0]
    assert timedelta(days=7) <= age < timedelta(days=7, minutes=5)


async def test_sweep_keeps_content_of_queued_messages() -> None:
    """After eight days without power, or after a clock jump."""
    spool, old = _Spool(), _line(timedelta(days=8))
    with structlog.testing.capture_logs() as lines:
        await _role(_Log(_line(timedelta(days=1)), old, _line(timedelta(days=2))), spool).sweep()
    assert spool.swept == [old.delivery.message.received]
    assert [(line["event"], line["older_than_days"]) for line in lines] == [("spool swept", 8.0)]


async def test_sweep_keeps_content_of_unconsumed_records() -> None:
    """The router was down for eight days while ingress was running."""
    spool, log = _Spool(), _Log(_line(timedelta(days=1)))
    log.unread = datetime.now(UTC) - timedelta(days=8)
    await _role(log, spool).sweep()
    assert spool.swept == [log.unread - ORDER_TOLERANCE]


async def test_nothing_is_swept_while_the_queue_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eilpost.maintenance.SWEEP_EVERY", timedelta(milliseconds=10))
    log, spool = _Log(), _Spool()
    log.unreadable = True
    stop = asyncio.Event()
    running = asyncio.create_task(_role(log, spool).run(lambda: None, stop))
    await wait_until(lambda: log.reads >= 3)
    assert spool.swept == []
    log.unreadable = False
    await wait_until(lambda: spool.swept, what="the sweep")
    stop.set()
    await asyncio.wait_for(running, 5)


def _line(age: timedelta) -> QueueEntry:
    line = queue_entry()
    message = replace(line.delivery.message, received=datetime.now(UTC) - age)
    return replace(line, delivery=replace(line.delivery, message=message))
