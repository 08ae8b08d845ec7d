"""Fault points inside a real process: at an armed point the process stops itself with SIGSTOP.

A test arms a point by writing its name into `armed` in the process's folder; the next message that reaches it adds a
line to `hits`, and all threads stop until the test sends SIGCONT or SIGKILL. A line in `cut` (seconds, and `reset` or
`whole`) cuts the network on resume. The points wrap product methods from outside.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tests.support.faults.attempt_ledger import AttemptLedger

# role -> its points, in the order in which a message reaches them
POINTS: Mapping[str, tuple[str, ...]] = {
    "ingress": ("before-dot", "after-append", "after-250"),
    "router": ("in-transaction", "after-commit"),
    "delivery": ("in-data", "after-remote-250", "after-mailbox-append", "after-report"),
}

# Points that know the message's size.
SIZED = ("before-dot", "after-append", "in-data", "after-remote-250", "after-mailbox-append", "after-report")
ATTEMPT_LEDGER = "tried"  # file in a delivery process's folder


class FaultPoints:
    """Fault points of this process. `on_cut(seconds, reset)` cuts the network."""

    def __init__(self, folder: Path, on_cut: Callable[[float, bool], None]) -> None:
        self.folder = folder
        self._armed = folder / "armed"
        self._hits = folder / "hits"
        self._cut = folder / "cut"
        self._on_cut = on_cut
        self.describe: Callable[[], Mapping[str, Any]] = dict

    def is_armed(self, name: str, *, size_bytes: int = 0) -> bool:
        """Whether the next message at `name` stops the process; `NAME SIZE` needs a message of SIZE bytes."""
        try:
            wanted, _, least = self._armed.read_text().partition(" ")
        except FileNotFoundError:
            return False
        return wanted == name and size_bytes >= int(least or 0)

    def hit(self, name: str, **what: Any) -> None:
        """Record the hit and stop until SIGCONT."""
        self._armed.unlink()
        line = {"point": name, "time": time.monotonic(), **what, **self.describe()}
        with self._hits.open("a") as file:
            file.write(json.dumps(line) + "\n")
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        if self._cut.exists():
            seconds, _, manner = self._cut.read_text().partition(" ")
            self._cut.unlink()
            self._on_cut(float(seconds), manner == "reset")

    def hit_if_armed(self, name: str, *, size_bytes: int = 0, **what: Any) -> None:
        if self.is_armed(name, size_bytes=size_bytes):
            self.hit(name, **what)


def install_ingress(points: FaultPoints) -> None:
    from ingress import accept, connection, framer

    feed, accept_was = framer.Framer.feed, accept.Acceptance.accept
    write = connection.Connection._write_output

    def feeding(self: Any, chunk: bytes) -> None:
        feed(self, chunk)
        if self.in_data and not self.data_is_complete and self.data_held_bytes:
            points.hit_if_armed("before-dot", size_bytes=self.data_held_bytes)

    async def accepting(self: Any, message: Any, data: bytes) -> Any:
        reply = await accept_was(self, message, data)
        if reply.code == 250:
            points.hit_if_armed("after-append", size_bytes=len(data), queue_id=message.queue_id)
        return reply

    def writing(self: Any) -> None:
        queued = [part for part in self.output if b"queued as " in part]
        write(self)
        if queued and points.is_armed("after-250"):
            queue_id = queued[-1].partition(b"queued as ")[2][:26].decode()
            # After this loop iteration the reply has left the process.
            self.loop.call_later(0.003, points.hit_if_armed, "after-250")
            points.describe = lambda: {"queue_id": queue_id}

    framer.Framer.feed = feeding  # type: ignore[method-assign]
    accept.Acceptance.accept = accepting  # type: ignore[method-assign]
    connection.Connection._write_output = writing  # type: ignore[method-assign]


def install_router(points: FaultPoints) -> None:
    from aiokafka import AIOKafkaProducer

    from mail.log.kafka.transactional_producer import TransactionalProducer

    begin, end = TransactionalProducer._commit, AIOKafkaProducer.commit_transaction

    async def commit_transaction(self: Any, producer: Any, batches: Any, offsets: Any) -> None:
        producer.shard = int(self._id.rpartition("-")[2])
        producer.dispatches = sum(len(records) for at, records in batches.items() if at.topic.endswith("dispatched"))
        await begin(self, producer, batches, offsets)
        if producer.dispatches:
            points.hit_if_armed("after-commit", shard=producer.shard, dispatches=producer.dispatches)

    async def ending(self: Any) -> None:
        if self.dispatches:
            # Records and offsets are written; the transaction's end is not yet sent to the broker.
            points.hit_if_armed("in-transaction", shard=self.shard, dispatches=self.dispatches)
        await end(self)

    TransactionalProducer._commit = commit_transaction  # type: ignore[method-assign]
    AIOKafkaProducer.commit_transaction = ending


def install_delivery(points: FaultPoints) -> None:
    from delivery.client_session import Phase
    from delivery.connection import Connection
    from delivery.worker import Worker
    from mail.log.kafka.delivery_shard import KafkaDeliveryShard
    from mail.log.kafka.offset_committer import OffsetCommitter
    from mail.outcome import Delivered
    from mail.route import ToMailbox

    ledger = AttemptLedger(points.folder / ATTEMPT_LEDGER)
    current: ContextVar[int] = ContextVar("current")  # each delivery is a task of its own
    work, made, write, finish = (
        Worker._run_delivery,
        OffsetCommitter.__init__,
        Connection._write,
        KafkaDeliveryShard.finish,
    )

    async def working(self: Any, job: Any) -> None:
        number = ledger.begin()
        current.set(number)
        try:
            await work(self, job)
        finally:
            ledger.end(number)

    def init_with_ledger(self: Any, shards: Any, commit: Any) -> None:
        async def commit_with_ledger(offsets: Any) -> None:
            owned = list(shards())
            numbers = ledger.select_committed([shard for shard in owned if shard.partition in offsets], owned)
            await commit(offsets)
            ledger.committed(numbers)

        made(self, shards, commit_with_ledger)

    def writing(self: Any, parts: list[bytes]) -> None:
        transport = self._transport
        if (
            self.session.phase is Phase.CONTENT
            and not transport.get_write_buffer_size()
            and points.is_armed("in-data", size_bytes=sum(map(len, parts)))
        ):
            half = max(1, len(parts[0]) // 2)
            sent = os.write(transport.get_extra_info("socket").fileno(), parts[0][:half])
            points.hit("in-data")
            parts = [parts[0][sent:], *parts[1:]]
        write(self, parts)

    async def finishing(self: Any, entry: Any, attempted: Any) -> None:
        delivery = entry.record.delivery
        what = {"size_bytes": delivery.message.size_bytes, "delivery_id": delivery.id}
        delivered = any(isinstance(each, Delivered) for each in attempted.outcomes)
        remote = delivered and not isinstance(delivery.route, ToMailbox)
        if delivered:
            points.hit_if_armed("after-remote-250" if remote else "after-mailbox-append", **what)
        append = self._append

        async def appending(record: Any) -> None:
            await append(record)
            if remote:
                points.hit_if_armed("after-report", **what)

        # Concurrent calls share the shard: each has its own wrapper during the call.
        await finish(_ShardWithAppend(self, appending), entry, attempted)  # type: ignore[arg-type]
        ledger.finish(current.get(), self)

    Worker._run_delivery = working  # type: ignore[method-assign]
    OffsetCommitter.__init__ = init_with_ledger  # type: ignore[method-assign]
    Connection._write = writing  # type: ignore[method-assign]
    KafkaDeliveryShard.finish = finishing  # type: ignore[method-assign]


class _ShardWithAppend:
    """A shard with another `_append`."""

    def __init__(self, shard: Any, append: Any) -> None:
        self._shard, self._append = shard, append

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)


INSTALL: Mapping[str, Callable[[FaultPoints], None]] = {
    "ingress": install_ingress,
    "router": install_router,
    "delivery": install_delivery,
}
