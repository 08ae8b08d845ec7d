"""Duration of `eilpost queue` over 100,000 deliveries in the embedded log: with and without a process that holds it."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from mail.address import Address
from mail.envelope import Envelope, Recipient
from mail.log.embedded import EmbeddedLog
from mail.log.embedded.commit import Change
from mail.log.embedded.store import Store
from mail.log.topics import ShardCounts
from mail.message import Client, Message, Spooled, delivery_id
from mail.queue_id import new_queue_id
from mail.record import Delivery, QueueEntry, WaitCause, Waiting
from mail.reply import Reply
from mail.route import ToMx
from mail.settings import LogSettings
from tests.support.servers.eilpost_process import EILPOST

DELIVERIES = 100_000
_SITES = 200
_BATCH = 2000
_LATER = Reply(451, "4.3.0", "Try again later")


@dataclass(frozen=True, slots=True)
class View:
    """Seconds of the command, from its start to its end, one for each run."""

    name: str
    seconds: tuple[float, ...]


def measure(runs: int = 5) -> list[View]:
    with tempfile.TemporaryDirectory(prefix="eilpost-queue-") as folder:
        database = Path(folder) / "log.db"
        _fill(database)
        without = View("no process holds the log", tuple(_view(database) for _ in range(runs)))
        return [without, asyncio.run(_measure_in_use(database, runs))]


def one_line(view: View) -> str:
    each = ", ".join(f"{seconds:.2f}" for seconds in view.seconds)
    return (
        f"`eilpost queue`, {DELIVERIES:,} deliveries, {view.name}: {statistics.median(view.seconds):.2f} s"
        f" (median of {len(view.seconds)}: {each})"
    )


async def _measure_in_use(database: Path, runs: int) -> View:
    log = EmbeddedLog(database, LogSettings())
    await log.start()
    try:
        seconds = [await asyncio.to_thread(_view, database) for _ in range(runs)]
    finally:
        await log.close()
    return View("an idle process holds the log", tuple(seconds))


def _view(database: Path) -> float:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EILPOST_")}
    environment["EILPOST_LOG__URL"] = f"embedded:{database}"
    began = time.monotonic()
    done = subprocess.run(
        [str(EILPOST), "queue"], cwd=database.parent, env=environment, capture_output=True, text=True, check=True
    )
    seconds = time.monotonic() - began
    assert f"{DELIVERIES:,}" in done.stdout, done.stdout[-500:]
    return seconds


def _fill(database: Path) -> None:
    store = Store(database, ShardCounts())
    try:
        every = _entries()
        while entries := list(islice(every, _BATCH)):
            change = Change()
            change.add(entries, store.counts)
            store.commit([change])
    finally:
        store.close()


def _entries() -> Iterator[QueueEntry]:
    start = datetime.now(UTC) - timedelta(hours=1)
    client = Client("192.0.2.1", 40000, "client.example.org", "ESMTP")
    waiting = Waiting(start + timedelta(days=1), WaitCause.DEFERRED, str(_LATER))
    for number in range(DELIVERIES):
        queue_id, domain = new_queue_id(), f"d{number % _SITES}.example.test"
        envelope = Envelope(Address("bob", "example.org"), (Recipient(Address(f"u{number}", domain)),))
        received = start + timedelta(milliseconds=number)
        message = Message(queue_id, "default", received, envelope, 10_000, client)
        delivery = Delivery(delivery_id(queue_id, 1), message, ToMx(domain, ((10, f"mx.{domain}"),)))
        yield QueueEntry(delivery, waiting, Spooled(queue_id, 10_000, "0" * 32), 1, _LATER, f"mx.{domain}[192.0.2.7]")
