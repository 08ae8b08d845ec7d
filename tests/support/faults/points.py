"""The instants at which a fault may hit, inside a real process, and how it comes to stand still at exactly one of them.

In the child. A test arms a point by writing its name into `armed` in the process's folder; the next message that
passes there writes a line into `hits`, and the process stops itself with SIGSTOP, all threads of it, between two
instructions. What happens then is the test's business: kill it, let it sleep, take a broker away, and SIGCONT it. A
line in `cut` (seconds, and `reset` or `whole`) makes the network of the process go away as it wakes. Product code
knows nothing of this: the points are wrapped around it.
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

# role -> its points, in the order in which a message passes them
POINTS: Mapping[str, tuple[str, ...]] = {
    "ingress": ("before-dot", "after-append", "after-250"),
    "router": ("in-transaction", "after-commit"),
    "delivery": ("in-data", "after-remote-250", "after-keep", "after-report"),
}

# Those that see a message's size.
SIZED = ("before-dot", "after-append", "in-data", "after-remote-250", "after-keep", "after-report")
ATTEMPT_LEDGER = "tried"  # the file in a delivery process's folder


class FaultPoints:
    """Of this process. `on_cut(seconds, reset)` takes the network away."""

    def __init__(self, folder: Path, on_cut: Callable[[float, bool], None]) -> None:
        self.folder = folder
        self._armed = folder / "armed"
        self._hits = folder / "hits"
        self._cut = folder / "cut"
        self._on_cut = on_cut
        self.describe: Callable[[], Mapping[str, Any]] = dict

    def is_armed(self, name: str, *, size_bytes: int = 0) -> bool:
        """Whether the next to pass `name` is to be hit; `NAME large` waits for a message that lies in the spool."""
        try:
            wanted, _, least = self._armed.read_text().partition(" ")
        except FileNotFoundError:
            return False
        return wanted == name and size_bytes >= int(least or 0)

    def hit(self, name: str, **what: Any) -> None:
        """Stand still here, now, until somebody sends SIGCONT."""
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
    from ingress import accept, framer, session

    feed, accept_was = framer.Framer.feed, accept.Acceptance.accept
    write = session.SmtpSession._write_output

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
        queued = [part for part in self._conversation.output if b"queued as " in part]
        write(self)
        if queued and points.is_armed("after-250"):
            queue_id = queued[-1].partition(b"queued as ")[2][:26].decode()
            # When the loop has turned, the reply has left the process.
            self.loop.call_later(0.003, points.hit_if_armed, "after-250")
            points.describe = lambda: {"queue_id": queue_id}

    framer.Framer.feed = feeding  # type: ignore[method-assign]
    accept.Acceptance.accept = accepting  # type: ignore[method-assign]
    session.SmtpSession._write_output = writing  # type: ignore[method-assign]


def install_router(points: FaultPoints) -> None:
    from aiokafka import AIOKafkaProducer

    from mail.log.kafka.transactional_producer import TransactionalProducer

    begin, end = TransactionalProducer._commit, AIOKafkaProducer.commit_transaction

    async def committing(self: Any, producer: Any, batches: Any, marks: Any) -> None:
        producer.shard = int(self._id.rpartition("-")[2])
        producer.dispatches = sum(len(records) for at, records in batches.items() if at.topic.endswith("dispatched"))
        await begin(self, producer, batches, marks)
        if producer.dispatches:
            points.hit_if_armed("after-commit", shard=producer.shard, dispatches=producer.dispatches)

    async def ending(self: Any) -> None:
        if self.dispatches:
            # All is written, the marks too, and the broker was not told that this is the end.
            points.hit_if_armed("in-transaction", shard=self.shard, dispatches=self.dispatches)
        await end(self)

    TransactionalProducer._commit = committing  # type: ignore[method-assign]
    AIOKafkaProducer.commit_transaction = ending


def install_delivery(points: FaultPoints) -> None:
    from delivery.connection import Connection
    from delivery.dialogue import Phase
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

    def making(self: Any, shards: Any, commit: Any) -> None:
        async def committing(marks: Any) -> None:
            owned = list(shards())
            numbers = ledger.select_committed([shard for shard in owned if shard.partition in marks], owned)
            await commit(marks)
            ledger.committed(numbers)

        made(self, shards, committing)

    def writing(self: Any, parts: list[bytes]) -> None:
        transport = self._transport
        if (
            self.dialogue.phase is Phase.CONTENT
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
            points.hit_if_armed("after-remote-250" if remote else "after-keep", **what)
        append = self._append

        async def appending(record: Any) -> None:
            await append(record)
            if remote:
                points.hit_if_armed("after-report", **what)

        # One shard, many calls: each has its own id in its own wrapper, for the length of its call.
        await finish(_ShardWithAppend(self, appending), entry, attempted)  # type: ignore[arg-type]
        ledger.finish(current.get(), self)

    Worker._run_delivery = working  # type: ignore[method-assign]
    OffsetCommitter.__init__ = making  # type: ignore[method-assign]
    Connection._write = writing  # type: ignore[method-assign]
    KafkaDeliveryShard.finish = finishing  # type: ignore[method-assign]


class _ShardWithAppend:
    """A shard whose `_append` is another."""

    def __init__(self, shard: Any, append: Any) -> None:
        self._shard, self._append = shard, append

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)


INSTALL: Mapping[str, Callable[[FaultPoints], None]] = {
    "ingress": install_ingress,
    "router": install_router,
    "delivery": install_delivery,
}
