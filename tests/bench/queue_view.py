"""Duration of `eilpost queue` over 100,000 deliveries: in the embedded log, with and without a process that holds it,
and on Kafka.
"""

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

from aiokafka import AIOKafkaProducer
from msgspec.structs import replace

from deploy.kafka.cluster import Cluster
from mail.address import Address
from mail.envelope import Envelope, Recipient
from mail.log.codec import encode
from mail.log.embedded import EmbeddedLog
from mail.log.embedded.commit import Change
from mail.log.embedded.store import Store
from mail.log.kafka.access import BATCH_BYTES, make_access
from mail.log.kafka.topics import SHARDS
from mail.log.topics import QUEUE, ShardCounts, place
from mail.message import Client, Message, Spooled, delivery_id
from mail.queue_id import new_queue_id
from mail.record import Active, Delivery, QueueEntry, WaitCause, Waiting
from mail.reply import Reply
from mail.route import ToMx
from mail.settings import LogSettings
from tests.support.servers.eilpost_process import EILPOST, directory_toml
from tests.support.servers.kafka import QUICK

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
        url = f"embedded:{database}"
        without = View("no process holds the log", tuple(_view(url) for _ in range(runs)))
        return [without, asyncio.run(_measure_in_use(database, runs))]


def measure_kafka(runs: int = 5) -> View:
    """On a broker of its own. Each delivery has two records, as after one attempt, and the topic is not compacted."""
    with tempfile.TemporaryDirectory(prefix="eilpost-queue-") as folder:
        broker = Cluster(1, Path(folder) / "kafka", settings=QUICK, heap="1g", optimized=True)
        broker.start()
        try:
            url = f"kafka://{broker.bootstrap}"
            _eilpost(url, "topics", "create")
            asyncio.run(_fill_kafka(url))
            return View("Kafka", tuple(_view(url) for _ in range(runs)))
        finally:
            broker.stop(timeout_seconds=0)


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
        seconds = [await asyncio.to_thread(_view, f"embedded:{database}") for _ in range(runs)]
    finally:
        await log.close()
    return View("an idle process holds the log", tuple(seconds))


def _view(url: str) -> float:
    began = time.monotonic()
    output = _eilpost(url, "queue")
    seconds = time.monotonic() - began
    assert f"{DELIVERIES:,}" in output, output[-500:]
    return seconds


def _eilpost(url: str, *command: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EILPOST_")}
    environment |= {"EILPOST_LOG__URL": url, "EILPOST_LOG__REPLICATION": "1", "EILPOST_LOG__DURABILITY": "dev"}
    with tempfile.TemporaryDirectory(prefix="eilpost-queue-") as folder:
        (Path(folder) / "eilpost.toml").touch()
        (Path(folder) / "directory.toml").write_text(directory_toml())
        done = subprocess.run(
            [str(EILPOST), *command], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
    return done.stdout


def _fill(database: Path) -> None:
    store = Store(database, ShardCounts())
    try:
        every = _entries()
        while entries := list(islice(every, _BATCH)):
            change = Change()
            change.add(entries, lambda entry: place(entry, store.counts))
            store.commit([change])
    finally:
        store.close()


async def _fill_kafka(url: str) -> None:
    settings = LogSettings(url=url)
    access = make_access(settings)
    counts = ShardCounts(SHARDS)
    producer = AIOKafkaProducer(acks="all", linger_ms=20, max_batch_size=BATCH_BYTES, **access.client_options(60.0))
    await producer.start()
    try:
        every = _entries()
        while entries := list(islice(every, _BATCH)):
            sends = []
            for entry in entries:
                at = place(entry, counts)
                active = replace(entry, state=Active(entry.delivery.message.received), attempts=0, last=None)
                sends += [
                    await producer.send(access.topic(QUEUE), encode(record), at.key.encode(), at.shard)
                    for record in (active, entry)
                ]
            await asyncio.gather(*sends)
    finally:
        await producer.stop()


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
