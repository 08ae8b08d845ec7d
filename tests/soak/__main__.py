"""`python -m tests.soak`: a soak of an hour, which writes docs/reports/soak.md; `make soak` runs it.

    python -m tests.soak                    60 minutes at half of the rate that this machine sustains
    python -m tests.soak --minutes 5        shorter; prints, writes nothing
    python -m tests.soak --rate 50          another rate

Exit status 1 if a message was lost, damaged or refused, or if the relay's memory, files, tasks or disk grew.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from eilpost import __version__
from tests.soak.run import DEFERRING, FAILING, RETENTION, SIZES, Sample, Soak, fastest_rate, soak

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reports" / "soak.md"
KILL_EVERY_SECONDS = 60.0
_RATE_SECONDS = 30
_ROWS = 12
# Growth of the mean from the second to the last third of the run.
GROWTH_MAX = {
    "memory_bytes": 1.1,
    "open_files": 1.25,
    "threads": 1.1,
    "tasks": 1.25,
    "log_bytes": 1.25,
}

_HEAD = f"""\
# Soak: load with a kill every minute

Written by `make soak`; do not edit. `eilpost load` sends to a server, the *front*, which relays to a second one, the
*relay*, which relays to the sink of the load. The front is killed with SIGKILL every minute and started again. The
relay runs from the beginning to the end, and its figures are in the table. Both keep the embedded log, with
`log.events_retention = "{RETENTION}"`. Sizes {SIZES}; the sink refuses {FAILING} of the recipients and defers
{DEFERRING} once.

The run fails if a message is lost, damaged or refused, or if a mean of the last third is above that of the second third
by more than the factor allowed: the first third is the start, in which caches fill. The spool has no limit here: it
keeps content for `spool.retention` (7 days), so it grows with the traffic until then.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Run a soak.")
    parser.add_argument("--minutes", type=float, default=60, help="(default: 60)")
    parser.add_argument("--rate", type=float, help="messages a second (default: half of the rate that is sustained)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eilpost-soak-") as folder:
        rate = options.rate
        if rate is None:
            fastest = fastest_rate(Path(folder) / "rate", _RATE_SECONDS)
            rate = round(fastest / 2)
            print(f"{fastest:.0f} messages a second without a limit", flush=True)
        print(f"{options.minutes:g} minutes at {rate:g} messages a second", flush=True)
        run = soak(Path(folder) / "soak", round(options.minutes * 60), rate, KILL_EVERY_SECONDS)
    text = page(run, datetime.now(UTC))
    if options.minutes >= 60:
        PAGE.write_text(text)
    print(text)
    return 1 if failures(run) else 0


def failures(run: Soak) -> list[str]:
    """Why the run failed, one line each."""
    found = [f"eilpost load ended with status {run.status}"] if run.status else []
    found += [f"{run.load[name]} {name}" for name in ("lost", "damaged", "refused", "unsent") if run.load[name]]
    found += [
        f"{name}: {growth:.2f} times that before, {allowed} allowed"
        for name, allowed in GROWTH_MAX.items()
        if (growth := run.growth(name)) > allowed
    ]
    return found


def page(run: Soak, now: datetime) -> str:
    load = run.load
    failed = failures(run)
    end_to_end = load["end_to_end_seconds"]
    return "\n".join(
        [
            _HEAD,
            f"Run of {now:%Y-%m-%d %H:%M} UTC, {load['sending_seconds'] / 60:.0f} minutes at {run.rate:g} messages a"
            f" second, {run.kills} kills. eilpost {__version__}, Python {platform.python_version()},"
            f" {os.cpu_count()} cores for servers, load and sink.",
            "",
            f"**{load['accepted']} recipients accepted, {load['delivered']} delivered, {load['bounced']} bounced,"
            f" {load['lost']} lost.** {load['in_doubt']} in doubt, {load['duplicates']} duplicates,"
            f" {load['connections']} connections. From the final dot to the sink: p50 {end_to_end['p50']:.2f} s,"
            f" p99 {end_to_end['p99']:.2f} s, at most {end_to_end['max']:.1f} s.",
            "",
            *(["FAILED: " + "; ".join(failed), ""] if failed else []),
            "| minute | memory | open files | threads | tasks | log | spool |",
            "|---:|---:|---:|---:|---:|---:|---:|",
            *map(_row, _evenly(run.samples)),
            "| growth | " + " | ".join(f"{run.growth(name):.2f}" for name in GROWTH_MAX) + " | - |",
            "| allowed | " + " | ".join(f"{allowed}" for allowed in GROWTH_MAX.values()) + " | - |",
            "",
        ]
    )


def _evenly(samples: list[Sample]) -> list[Sample]:
    """The mean of each of equal parts of the run."""
    size = max(1, -(-len(samples) // _ROWS))
    parts = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [Sample(*(round(sum(values) / len(part)) for values in zip(*part, strict=True))) for part in parts]


def _row(sample: Sample) -> str:
    memory, log, spool = (
        f"{size / 2**20:.0f} MiB" for size in (sample.memory_bytes, sample.log_bytes, sample.spool_bytes)
    )
    return (
        f"| {sample.seconds / 60:.0f} | {memory} | {sample.open_files} | {sample.threads} | {sample.tasks} |"
        f" {log} | {spool} |"
    )


if __name__ == "__main__":
    sys.exit(main())
