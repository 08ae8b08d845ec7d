"""`python -m tests.bench.move [HOST:PORT]`: throughput of moving a queue of 10,000 messages of 10 kB.

From one embedded log to another or, with a broker's address, to a Kafka with 12 shards; one delivery state at a time,
so that each code path has its own figure.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from eilpost.move.command import move_until_done
from eilpost.move.items import ContentCopier
from mail import logging_setup
from mail.log.embedded import EmbeddedLog
from mail.settings import LogSettings
from mail.spool.disk import DiskSpool
from tests.support.builders.mixed_queue import plant
from tests.support.faults.killable_mover import RecordingProgress
from tests.support.servers.kafka_log import running, settings_on

MESSAGES, SIZE = 10_000, 10_000
KINDS = (("not read yet", "unread", True), ("active", "active", True), ("waits, one spool", "retry", True),
         ("waits, two spools", "retry", False))  # fmt: skip


async def measure(bootstrap: str | None, kind: str, one_spool: bool, folder: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds of this process."""
    async with AsyncExitStack() as stack:
        source = EmbeddedLog(folder / "old.db", LogSettings())
        await source.start()
        stack.push_async_callback(source.close)
        here = DiskSpool(folder / "old")
        there = here if one_spool else DiskSpool(folder / "new")
        await plant(source, here, MESSAGES, SIZE, [kind])
        target: Any
        if bootstrap:
            target = await stack.enter_async_context(running(settings_on(bootstrap, shards=12, delivery_shards=12)))
        else:
            target = EmbeddedLog(folder / "new.db", LogSettings())
            await target.start()
            stack.push_async_callback(target.close)
        copier = ContentCopier(None if one_spool else here, there, 256 << 10)
        quiet = RecordingProgress()
        began, cpu = time.perf_counter(), time.process_time()
        result = await move_until_done(source, target, copier, history=True, progress=quiet, print_message=print)
        seconds, used = time.perf_counter() - began, time.process_time() - cpu
        assert result.messages == MESSAGES, result
        return seconds, used


def main() -> None:
    logging_setup.disable()
    bootstrap = sys.argv[1] if len(sys.argv) > 1 else None
    print(f"{MESSAGES:,} messages of {SIZE // 1000} kB, embedded to {bootstrap or 'embedded'}")
    for words, kind, one_spool in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            seconds, cpu = asyncio.run(measure(bootstrap, kind, one_spool, Path(folder)))
            rate, each = MESSAGES / seconds, cpu * 1000 / MESSAGES
            print(f"{words:<20} {seconds:6.1f} s  {rate:8,.0f} a second  {each:5.2f} ms CPU a message", flush=True)


if __name__ == "__main__":
    main()
