"""Benchmark of the spools: `python -m tests.bench.spool` prints a table of writes and reads per second.

One caller, then fifty; each writes the next content when its last one is durable; then all contents are read once. The
object store is the tests' own server on the same cores, which writes without fsync: the figures measure our client, not
a provider.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from mail.message import Spooled
from mail.spool import Spool
from mail.spool.disk import DiskSpool
from tests.support.servers import object_store

CALLERS = (1, 50)
HEAD = ("spool", "content", "callers", "keeps/s", "MB/s", "p50 ms", "p99 ms", "in one write", "reads/s")
SECONDS = 3.0
SIZES = {"20 kB": 20_000, "1 MB": 1_000_000, "5 MB": 5_000_000}


async def _keep(spool: Spool, size: int, callers: int, seconds: float) -> tuple[list[Spooled], list[float], float]:
    """The contents written, the time of each write, and the total time."""
    content = os.urandom(size)
    stored: list[Spooled] = []
    durations: list[float] = []
    began = time.perf_counter()

    async def caller() -> None:
        while (start := time.perf_counter()) < began + seconds:
            stored.append(await spool.put(content))
            durations.append(time.perf_counter() - start)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return stored, durations, time.perf_counter() - began


async def _read(spool: Spool, stored: list[Spooled], callers: int) -> float:
    began = time.perf_counter()
    rest = iter(stored)

    async def caller() -> None:
        for spooled in rest:
            await spool.read(spooled)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return time.perf_counter() - began


async def _row(name: str, spool: Spool, label: str, size: int, callers: int) -> None:
    await _keep(spool, size, callers, 0.5)
    stored, durations, seconds = await _keep(spool, size, callers, SECONDS)
    reading = stored[:2000]
    read_seconds = await _read(spool, reading, callers)
    p50, p99 = (statistics.quantiles(durations, n=100)[at] * 1000 for at in (49, 98))
    batches = len({spooled.name.partition("@")[0] for spooled in stored})
    cells = (
        *(name, label, callers, f"{len(stored) / seconds:,.0f}", f"{len(stored) * size / seconds / 1e6:,.0f}"),
        *(f"{p50:.1f}", f"{p99:.1f}", f"{len(stored) / batches:.1f}", f"{len(reading) / read_seconds:,.0f}"),
    )
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


async def main() -> None:
    if (why := object_store.why_missing()) is not None:
        raise SystemExit(why)
    object_store.prepare()
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for label, size in SIZES.items():
        with object_store.ObjectServer() as server, tempfile.TemporaryDirectory(prefix="eilpost-spool-") as folder:
            for name, spool in (
                ("objects", object_store.object_spool(server)),
                ("disk", DiskSpool(Path(folder) / "spool")),
            ):
                for callers in CALLERS:
                    await _row(name, spool, label, size, callers)
                await spool.close()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
