"""Latency at a low, steady rate: to the 250 and to the sink, for both servers at the same rate."""

from __future__ import annotations

import asyncio
import statistics
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.servers import EilpostServer, PostfixServer, Server
from tests.support.faults.accounting import AccountedMessage, Sink, Source
from tests.support.servers.ports import wait_until

PER_SECOND = 100


@dataclass(frozen=True, slots=True)
class Delays:
    """Milliseconds (median, 99th percentile) from the dot to the 250 and from the dot to the sink."""

    server: str
    accept_p50: float
    accept_p99: float
    end_to_end_p50: float
    end_to_end_p99: float


def measure(*, quick: bool) -> list[Delays]:
    makers: list[Callable[[int], Server]] = [PostfixServer, EilpostServer]
    return [asyncio.run(_measure(make, 300 if quick else 2000)) for make in makers]


async def _measure(make: Callable[[int], Server], messages: int) -> Delays:
    async with Sink() as sink:
        server = await asyncio.to_thread(make, sink.port)
        try:
            await _paced(server, sink, 100)  # warm up
            source = await _paced(server, sink, messages)
        finally:
            await asyncio.to_thread(server.stop)
    through = [sink.first_at[id_] - sent for id_, sent in source.sent_at.items()]
    accept = statistics.quantiles(source.accept_seconds, n=100)
    end_to_end = statistics.quantiles(through, n=100)
    return Delays(server.name, *(1000 * value for value in (accept[49], accept[98], end_to_end[49], end_to_end[98])))


async def _paced(server: Server, sink: Sink, messages: int) -> Source:
    source = Source(server.port, sessions=20, per_connection=1000)
    run = uuid.uuid4().hex[:8]
    ids = [f"{run}-{number}" for number in range(messages)]
    await source.send(
        (AccountedMessage(id_, "bench@sender.test", ("recipient@remote.test",), 10_000) for id_ in ids),
        per_second=PER_SECOND,
    )
    await wait_until(lambda: sink.ids() >= set(ids), deadline_seconds=60, what="the last arrival")
    return source


def one_line(delays: Delays) -> str:
    return (
        f"{delays.server:8} at {PER_SECOND}/s: 250 after {delays.accept_p50:.1f} ms (p99 {delays.accept_p99:.1f}), "
        f"at the sink after {delays.end_to_end_p50:.1f} ms (p99 {delays.end_to_end_p99:.1f})"
    )
