"""Benchmark of eilpost on Kafka against Postfix on the same processors; writes a part of docs/reports/performance.md.

One broker and one process per role, as in a cluster: it measures the whole path through five topics, but no network.
Then two routers, and two deliveries, which must not be slower. Load stays on loopback and ends by itself.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from deploy.kafka.cluster import Cluster
from tests.bench import latency, machine, queue_view, report
from tests.bench.load import CountingSink, Round, Scenario, drive
from tests.bench.queue_view import View
from tests.bench.servers import PostfixServer, Server
from tests.support.faults.accounting import AccountedMessage, Sink, Source
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess
from tests.support.servers.kafka import QUICK
from tests.support.servers.ports import wait_until

SHARDS, DELIVERY_SHARDS = 4, 8
_SETTLE_SECONDS = 3.0
_WARM_UP = 8  # loads before the first counted one: Java compiles its code while it is new
_SCALE_ROUNDS = 8
# Warm-up rounds of all kinds: after each shard move the broker runs (and Java compiles) new code, and the first rounds
# take twice as long per message as the last ones.
_SCALE_WARM_UP = 3
_KINDS = (("1 + 1", 1, 1), ("2 routers", 2, 1), ("2 deliveries", 1, 2))
RELAY = ("ingress", "router", "delivery")


class KafkaServer(Server):
    """A broker and processes of each role."""

    def __init__(self, sink_port: int, *, routers: int = 1, deliveries: int = 1, name: str = "eilpost") -> None:
        self.name = name
        self._home = Path(tempfile.mkdtemp(prefix="eilpost-bench-kafka-"))
        self._cluster = Cluster(1, self._home / "kafka", settings=QUICK, heap="1g", optimized=True)
        self._cluster.start()
        shared = {
            "log": {
                "url": f"kafka://{self._cluster.bootstrap}",
                "durability": "dev",
                "replication": 1,
                "shards": SHARDS,
                "delivery_shards": DELIVERY_SHARDS,
            },
            "spool": {"url": f"file:{self._home}/spool"},
            "mailboxes": {"url": f"maildir:{self._home}/mail"},
            "delivery": {"relay": f"smtp://127.0.0.1:{sink_port}"},
        }
        counts = {"ingress": 1, "router": routers, "delivery": deliveries}
        self._boxes = [
            EilpostProcess(self._home / f"{role}-{number}", shared, command=(str(EILPOST), role), own_session=True)
            for role in RELAY
            for number in range(counts[role])
        ]
        self._boxes[0].run("topics", "create")
        for box in self._boxes:
            box.start(wait=False)
        for box in self._boxes:
            box.wait_ready(60)
        self.port = self._boxes[0].mx

    @property
    def leader(self) -> int:
        return self._boxes[0].pid

    @property
    def disk(self) -> Path:
        return self._home

    def cpu_seconds(self) -> float:
        brokers = sum(machine.own_seconds(node.pid) for node in self._cluster.nodes)
        return brokers + sum(machine.cpu_seconds(box.pid) for box in self._boxes if box.is_running)

    def resident_bytes(self) -> int:
        brokers = sum(machine.resident_bytes(node.pid) for node in self._cluster.nodes)
        return brokers + sum(machine.resident_bytes(box.pid) for box in self._boxes if box.is_running)

    def run_only(self, *, routers: int, deliveries: int) -> None:
        """Start and stop processes until the given number of each role runs and the groups are stable."""
        wanted = {"ingress": 1, "router": routers, "delivery": deliveries}
        for box in self._boxes:
            role, _, number = box.home.name.partition("-")
            if int(number) >= wanted[role]:
                if box.is_running:
                    box.stop(60)
            elif not box.is_running:
                box.start()
        time.sleep(_SETTLE_SECONDS)

    def by_process(self) -> dict[str, float]:
        """CPU seconds so far, by process."""
        seconds = {"broker": sum(machine.own_seconds(node.pid) for node in self._cluster.nodes)}
        for box in self._boxes:
            seconds[box.home.name] = machine.cpu_seconds(box.pid)
        return seconds

    def stop(self) -> None:
        try:
            for box in self._boxes:
                if box.is_running:
                    box.stop(60)
        finally:
            self._cluster.stop(timeout_seconds=0)
            shutil.rmtree(self._home, ignore_errors=True)


def compare(*, quick: bool, rounds: int) -> tuple[report.Results, dict[str, float]]:
    """Compare Postfix and one process of each role in alternating rounds; includes CPU time by process."""
    messages = 2000 if quick else 6000
    results: report.Results = {}
    shares: dict[str, float] = {}
    with CountingSink() as sink:
        servers: list[Server] = [PostfixServer(sink.port)]
        try:
            kafka = KafkaServer(sink.port)
            servers.append(kafka)
            for server in servers:
                for _ in range(1 if server is not kafka else _WARM_UP):
                    drive(server, sink, Scenario(10_000, False, 1500))
            for scenario in (Scenario(10_000, False, messages), Scenario(10_000, True, messages)):
                lines: list[Round] = []
                for number in range(1, rounds + 1):
                    for server in servers:
                        before = kafka.by_process()
                        line = drive(server, sink, scenario)
                        if server is kafka:
                            after = kafka.by_process()
                            shares = {name: (after[name] - before[name]) * 1000 / messages for name in after}
                        lines.append(line)
                        print(f"{scenario.name:26} round {number}  {report.one_line(line)}", flush=True)
                results[scenario] = lines
        finally:
            for server in servers:
                server.stop()
    return results, shares


def scale(*, quick: bool, rounds: int) -> list[Round]:
    """Compare one process of each role, two routers and two deliveries in alternating rounds on the same broker."""
    messages = 2000 if quick else 6000
    lines: list[Round] = []
    with CountingSink() as sink:
        server = KafkaServer(sink.port, routers=2, deliveries=2)
        try:
            for _ in range(_WARM_UP):
                drive(server, sink, Scenario(10_000, True, 1500))
            for number in range(1 - (0 if quick else _SCALE_WARM_UP), rounds + 1):
                # another kind is first in each round, because the broker gets faster over time
                first = number % len(_KINDS)
                for name, routers, deliveries in (*_KINDS[first:], *_KINDS[:first]):
                    server.run_only(routers=routers, deliveries=deliveries)
                    server.name = name
                    drive(server, sink, Scenario(10_000, True, 1500))  # warm up after the shards have moved
                    line = drive(server, sink, Scenario(10_000, True, messages))
                    if number > 0:
                        lines.append(line)
                    print(f"{name:26} round {number}  {report.one_line(line)}", flush=True)
        finally:
            server.stop()
    return lines


def append_delay(per_second: int, *, quick: bool) -> tuple[float, float]:
    """Milliseconds from the dot to the 250 at a steady rate: median and 99th percentile."""
    return asyncio.run(_append_delay(per_second, 300 if quick else 3000))


async def _append_delay(per_second: int, messages: int) -> tuple[float, float]:
    async with Sink() as sink:
        server = await asyncio.to_thread(KafkaServer, sink.port)
        try:
            for count in (1000, messages):
                source = Source(server.port, sessions=20, per_connection=1000)
                run = uuid.uuid4().hex[:8]
                ids = [f"{run}-{number}" for number in range(count)]
                await source.send(
                    (AccountedMessage(id_, "bench@sender.test", ("recipient@remote.test",), 10_000) for id_ in ids),
                    per_second=per_second,
                )
                await wait_until(lambda ids=ids: sink.ids() >= set(ids), deadline_seconds=120, what="the last arrival")
        finally:
            await asyncio.to_thread(server.stop)
    cuts = statistics.quantiles(source.accept_seconds, n=100)
    return 1000 * cuts[49], 1000 * cuts[98]


def run(docs: Path, *, quick: bool) -> None:
    """Run all parts; write the report unless `quick`."""
    rounds = 2 if quick else 3
    results, shares = compare(quick=quick, rounds=rounds)
    scaled = scale(quick=quick, rounds=2 if quick else _SCALE_ROUNDS)
    rates = [report.median(lines, "eilpost", lambda line: line.end_to_end_rate) for lines in results.values()]
    delays = {half: append_delay(half, quick=quick) for half in (max(10, int(rate / 2)) for rate in rates)}
    text = _text(results, shares, scaled, delays, queue_view.measure_kafka())
    print(text)
    if not quick:
        report.write_part(docs, report.KAFKA, text)


def _in_turn(rates: Sequence[float], usual: Sequence[float]) -> str:
    """Ratios within each round, because the broker gets faster over time."""
    ratios = [rate / reference for rate, reference in zip(rates, usual, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _text(
    results: report.Results,
    shares: dict[str, float],
    scaled: Sequence[Round],
    delays: Mapping[int, tuple[float, float]],
    view: View,
) -> str:
    rounds = max(len(lines) for lines in results.values()) // 2
    others = max(line.other_cpu_share for lines in [*results.values(), scaled] for line in lines)
    care = "" if others < 0.15 else " **The machine was not quiet: take these figures with care.**"
    rates = {kind[0]: [line.end_to_end_rate for line in scaled if line.server == kind[0]] for kind in _KINDS}
    usual = rates[_KINDS[0][0]]
    rows = "".join(
        f"| {name} | {statistics.median(each):.0f} | {_in_turn(each, usual)} "
        f"| {min(each):.0f} to {max(each):.0f} "
        f"| {report.median(scaled, name, lambda line: line.cpu_ms):.2f} |\n"
        for name, each in rates.items()
    )
    appends = "".join(f"| {rate} | {p50:.1f} | {p99:.1f} |\n" for rate, (p50, p99) in delays.items())
    spent = "".join(f"| {name} | {milliseconds:.2f} |\n" for name, milliseconds in shares.items())
    facts = "\n".join(f"* {name}: {value}" for name, value in machine.description().items())
    every = "\n".join(
        [f"{scenario.name:26} {report.one_line(line)}" for scenario, lines in results.items() for line in lines]
        + [f"{line.server:26} {report.one_line(line)}" for line in scaled]
    )
    return f"""\
## One process of each role, Kafka

Measured on {datetime.now(UTC):%d %B %Y} with an Apache Kafka of one node, whose broker runs on the same processors as
the load and the servers, and with Debian's Postfix in the same run.

{report.table(results)}

Medians of {rounds} rounds. One process each of ingress, router and delivery; {SHARDS} router shards,
{DELIVERY_SHARDS} delivery shards.
CPU and memory are those of the broker and the three processes together. Kafka confirms a record from the page cache:
a confirmed record is durable by its replicas on other nodes, not by a disk flush.

CPU of a message by process, reused connections:

| process | ms a message |
|---|---:|
{spent}
A profile (py-spy, 27 November 2026, 200 samples a second under this load): the router spends 30% of its CPU in
aiokafka, 36% in the event loop and its sockets, and 8% in codec and decisions; delivery 22%, 37% and 13% (the SMTP
dialogue); ingress 9%, 54% and 16%. The broker's CPU depends on the number of requests, so batching made it faster (a
router shard collects for 100 ms, reports for 10 ms, offset commits for 20 ms).

### More processes

The same load, reused connections, {_SCALE_ROUNDS} rounds of all three in turn after {_SCALE_WARM_UP} that do not
count; the ratio is the median of the ratios within a round, with the first and third quartile. One router and one
delivery process with the broker use two processors fully, so more processes cannot be faster here; they are for more
machines. They must not be slower either.

| processes | end to end /s | ratio | rounds | CPU ms a message |
|---|---:|---:|---:|---:|
{rows}
### An append at half the load

Time from the final dot to the 250, at half of each rate above, steady, 10 kB, over twenty kept connections
(the other part has {latency.PER_SECOND} a second).

| messages /s | median, ms | p99, ms |
|---:|---:|---:|
{appends}
### A long queue

{queue_view.one_line(view)}

* At most {others:.0%} of the machine was busy with work other than the servers and their load.{care}
{facts}

```
{every}
```
"""
