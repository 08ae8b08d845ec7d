"""Report writer for the benchmark: console lines, tables, and docs/reports/performance.md with its plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import latency, machine, queue_view, start
from tests.bench.latency import Delays
from tests.bench.load import SESSIONS, Round, Scenario
from tests.bench.queue_view import View
from tests.bench.start import Start

Results = dict[Scenario, list[Round]]

BEFORE = "before"  # name of the server of another checkout
PAGE = Path("reports") / "performance.md"
EMBEDDED, KAFKA = "embedded log", "Kafka"  # the parts of the page


def replace_part(page: str, part: str, text: str) -> str:
    """The page with another text of the part. The rest of the page, and the other part, are kept."""
    head, begin, rest = page.partition(f"<!-- begin: {part}, by `make bench` -->\n")
    _, end, tail = rest.partition(f"<!-- end: {part} -->\n")
    if not begin or not end:
        raise ValueError(f"the markers of the part {part!r} are missing")
    return head + begin + text + end + tail


def write_part(docs: Path, part: str, text: str) -> None:
    path = docs / PAGE
    path.write_text(replace_part(path.read_text(encoding="utf-8"), part, text), encoding="utf-8")
    print(f"written: {path}, {part}")


def one_line(line: Round) -> str:
    flushes = "?" if line.flushes is None else str(line.flushes)
    return (
        f"{line.server:8} {line.accepted_rate:6.0f} accepted/s {line.end_to_end_rate:6.0f} end to end/s "
        f"{line.cpu_ms:5.2f} ms CPU {line.memory_bytes / 1e6:4.0f} MB {flushes:>6} flushes "
        f"(load {line.load_cpu_ms:.2f} ms, others {line.other_cpu_share:.0%} of the machine)"
    )


def median(lines: Sequence[Round], server: str, of: Callable[[Round], float]) -> float:
    values = [of(line) for line in lines if line.server == server]
    return statistics.median(values) if values else float("nan")


def table(results: Mapping[Scenario, Sequence[Round]]) -> str:
    rows = [
        "| load | accepted /s: Postfix | eilpost | ratio | end to end /s: Postfix | eilpost | ratio |"
        " CPU ms a message: Postfix | eilpost | MB: Postfix | eilpost | disk flushes a message: Postfix | eilpost |",
        "|---|" + "---:|" * 12,
    ]
    for scenario, lines in results.items():

        def pair(of: Callable[[Round], float], lines: Sequence[Round] = lines) -> tuple[float, float]:
            return median(lines, "Postfix", of), median(lines, "eilpost", of)

        accepted = pair(lambda line: line.accepted_rate)
        through = pair(lambda line: line.end_to_end_rate)
        cpu = pair(lambda line: line.cpu_ms)
        memory = pair(lambda line: line.memory_bytes / 1e6)
        flushes = pair(lambda line, count=scenario.messages: (line.flushes or 0) / count)  # type: ignore[misc]
        rows.append(
            f"| {scenario.name} | {accepted[0]:.0f} | {accepted[1]:.0f} | {accepted[1] / accepted[0]:.2f} "
            f"| {through[0]:.0f} | {through[1]:.0f} | **{through[1] / through[0]:.2f}** "
            f"| {cpu[0]:.2f} | {cpu[1]:.2f} | {memory[0]:.0f} | {memory[1]:.0f} | {flushes[0]:.2f} | {flushes[1]:.2f} |"
        )
    return "\n".join(rows)


def table_of_change(results: Mapping[Scenario, Sequence[Round]]) -> str:
    """Medians of the eilpost before and of this one, and the ratio of this one to the one before."""
    rows = ["| load | accepted /s | ratio | end to end /s | ratio | CPU ms a message | ratio |", "|---|" + "---:|" * 6]
    columns: list[Callable[[Round], float]] = [
        lambda line: line.accepted_rate,
        lambda line: line.end_to_end_rate,
        lambda line: line.cpu_ms,
    ]
    for scenario, lines in results.items():
        cells = [scenario.name]
        for of in columns:
            before, now = median(lines, BEFORE, of), median(lines, "eilpost", of)
            cells += [f"{before:.4g}, {now:.4g}", f"**{now / before:.2f}**"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def write(
    docs: Path, results: Results, delays: Sequence[Delays], starts: Sequence[Start], views: Sequence[View]
) -> None:
    """Write the part of the embedded log and docs/reports/performance.png."""
    plot(docs / "reports" / "performance.png", results)
    write_part(docs, EMBEDDED, _text(results, delays, starts, views))


def _text(results: Results, delays: Sequence[Delays], starts: Sequence[Start], views: Sequence[View]) -> str:
    rounds = max(len(lines) for lines in results.values()) // 2
    others = max(line.other_cpu_share for lines in results.values() for line in lines)
    care = "" if others < 0.15 else " **The machine was not quiet: take these figures with care.**"
    facts = "\n".join(f"* {name}: {value}" for name, value in machine.description().items())
    loads = ", ".join(f"{scenario.messages:,} of {scenario.size_bytes // 1000} kB" for scenario in list(results)[::2])
    every = "\n".join(f"{scenario.name:26} {one_line(line)}" for scenario, lines in results.items() for line in lines)
    steady = "".join(
        f"| {line.server} | {line.accept_p50:.1f} ms | {line.accept_p99:.1f} ms | {line.end_to_end_p50:.1f} ms "
        f"| {line.end_to_end_p99:.1f} ms |\n"
        for line in delays
    )
    first = "".join(f"* {start.one_line(each)}\n" for each in starts)
    queue = "".join(f"* {queue_view.one_line(view)}\n" for view in views)
    return f"""\
## One process, embedded log

Measured on {datetime.now(UTC):%d %B %Y}. Every message is flushed to disk before its `250`.

![End to end, messages per second](performance.png)

{table(results)}

Medians of {rounds} rounds. *Accepted*: messages divided by the time until `smtp-source` had its last `250`. *End to
end*: messages divided by the time from the first send until `smtp-sink` had counted the last one. CPU is user and
system time of the server's processes; memory is the highest sum of their proportional set sizes.

### At a steady {latency.PER_SECOND} messages of 10 kB a second

| server | `250` after, median | p99 | at the sink after, median | p99 |
|---|---:|---:|---:|---:|
{steady}
### From the start to the first `250`

{first}
### A long queue

{queue}
### How it was measured

* Both servers ran at the same time on the same disk and were loaded in turn, never together; load generator and
  sink ran on the same processors. {loads} in each round, over {SESSIONS} parallel sessions of
  `smtp-source`; *new*: one connection for each message, *reused* (`-d`): one for each session.
* Postfix: Debian's package with its defaults (`default_process_limit` 100, `default_destination_concurrency_limit` 20,
  connection cache on demand, queue file flushed before the `250`), `relayhost` the sink; without chroot, TLS and
  logging.
* eilpost: `eilpost up` with its defaults (20 connections to one site), `delivery.relay` the sink, all roles in one
  process, one structured log line for each message and role.
* The start: `eilpost demo`, which is what `make run` calls, from the start of its process to the `250` for its first
  message, with all four roles and a log on the disk; the client retries every few milliseconds.
* Neither server uses DNS. Disk flushes are those that the disk reports, from any process.
* At most {others:.0%} of the machine was busy with work other than the two servers and their load.{care}

{facts}

### Every round

```
{every}
```
"""


def plot(path: Path, results: Mapping[Scenario, Sequence[Round]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), dpi=120)
    for number, (server, colour) in enumerate((("Postfix", "#9aa5b1"), ("eilpost", "#1f6f8b"))):
        places = [place + (number - 0.5) * 0.38 for place in range(len(results))]
        heights = [median(lines, server, lambda line: line.end_to_end_rate) for lines in results.values()]
        bars = axes.bar(places, heights, 0.36, label=server, color=colour)
        axes.bar_label(bars, [f"{height:.0f}" for height in heights], fontsize=8)
        for place, lines in zip(places, results.values(), strict=True):
            each = [line.end_to_end_rate for line in lines if line.server == server]
            axes.plot([place] * len(each), each, ".", color="black", markersize=3)
    axes.set_xticks(range(len(results)), [scenario.name.replace(", ", "\n") for scenario in results], fontsize=8)
    axes.set_ylabel("messages per second, end to end")
    axes.set_title("Durable relay on one machine (bars: medians; dots: rounds)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
