"""`make bench`: benchmark of eilpost and Debian's Postfix in alternating rounds, smtp-source into smtp-sink.

    python -m tests.bench                 about ten minutes; medians of 5 rounds; writes docs/reports/performance.md
    python -m tests.bench --quick         about a minute; prints, writes nothing
    python -m tests.bench kafka           eilpost on a real Kafka against Postfix (part of the full run)
    python -m tests.bench start           from the start of `make run` to its first 250 (part of the full run)
    python -m tests.bench queue           `eilpost queue` over 100,000 deliveries (part of the full run)
    python -m tests.bench flood           a relay client's transaction, with 2,200 other clients and without
    python -m tests.bench profile         CPU time of a message by package and by function
    python -m tests.bench --before DIR    the checkout DIR too, with its own .venv; prints, writes nothing

Load stays on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.bench import cpu_profile, flood, kafka, latency, queue_view, report, start
from tests.bench.load import CountingSink, LoadFailed, Round, Scenario, drive
from tests.bench.servers import EilpostServer, PostfixServer, Server
from tests.support.servers import kafka as kafka_part
from tests.support.servers import postfix

DOCS = Path(__file__).parents[2] / "docs"


def scenarios(quick: bool, size_kb: int | None = None) -> list[Scenario]:
    small, large = (2000, 400) if quick else (10_000, 2000)
    every = [
        Scenario(10_000, False, small),
        Scenario(10_000, True, small),
        Scenario(100_000, False, large),
        Scenario(100_000, True, large),
    ]
    return [scenario for scenario in every if size_kb is None or scenario.size_bytes == size_kb * 1000]


def compare(
    quick: bool, rounds: int, size_kb: int | None, *, only_eilpost: bool = False, before: Path | None = None
) -> report.Results:
    results: report.Results = {}
    with CountingSink() as sink:
        servers: list[Server] = []
        try:
            if not only_eilpost:
                servers.append(PostfixServer(sink.port))
            if before is not None:
                command = str(before / ".venv" / "bin" / "eilpost"), "up"
                servers.append(EilpostServer(sink.port, command, report.BEFORE))
            servers.append(EilpostServer(sink.port))
            for server in servers:
                drive(server, sink, Scenario(10_000, False, 300))  # warm up
            for scenario in scenarios(quick, size_kb):
                lines: list[Round] = []
                for number in range(1, rounds + 1):
                    for server in servers:
                        line = drive(server, sink, scenario)
                        lines.append(line)
                        print(f"{scenario.name:26} round {number}  {report.one_line(line)}", flush=True)
                results[scenario] = lines
        finally:
            for server in servers:
                server.stop()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "what",
        nargs="?",
        choices=["compare", "profile", "latency", "start", "queue", "kafka", "flood"],
        default="compare",
    )
    parser.add_argument("--quick", action="store_true", help="small loads, three rounds, no report")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--size", type=int, choices=[10, 100], help="only this size, in kB")
    parser.add_argument("--eilpost", action="store_true", help="without Postfix")
    parser.add_argument("--before", type=Path, help="compare with the eilpost of this checkout too")
    parser.add_argument("--new", action="store_true", help="profile: a new connection for each message")
    options = parser.parse_args()
    if options.what == "profile":
        return cpu_profile.run(messages=3000, size_bytes=(options.size or 10) * 1000, reused=not options.new)
    why = postfix.why_missing()
    if why is not None and not options.eilpost and options.what not in ("start", "queue", "flood"):
        print(f"bench: {why}; smtp-source and smtp-sink come with it too", file=sys.stderr)
        return 2
    no_kafka = kafka_part.why_no_cluster()
    try:
        if options.what == "kafka":
            if no_kafka is not None:
                print(f"bench: {no_kafka}", file=sys.stderr)
                return 2
            kafka.run(DOCS, quick=options.quick)
            return 0
        if options.what == "start":
            for taken in start.measure(options.rounds or 5):
                print(start.one_line(taken))
            return 0
        if options.what == "flood":
            for transactions in flood.measure(500 if options.quick else 2000):
                print(flood.one_line(transactions))
            return 0
        if options.what == "queue":
            views = queue_view.measure(options.rounds or 5)
            if no_kafka is None:
                views.append(queue_view.measure_kafka(options.rounds or 5))
            for view in views:
                print(queue_view.one_line(view))
            return 0
        if options.what == "latency":
            for line in latency.measure(quick=options.quick):
                print(latency.one_line(line))
            return 0
        rounds = options.rounds or (3 if options.quick else 5)
        results = compare(options.quick, rounds, options.size, only_eilpost=options.eilpost, before=options.before)
        print(report.table(results))
        if options.before is not None:
            print(report.table_of_change(results))
        elif not options.quick and not options.eilpost and options.size is None:
            delays = latency.measure(quick=False)
            report.write(DOCS, results, delays, start.measure(), queue_view.measure())
            if no_kafka is None:
                kafka.run(DOCS, quick=False)
            else:
                print(f"NOT MEASURED on a real Kafka: {no_kafka}", file=sys.stderr)
    except LoadFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
