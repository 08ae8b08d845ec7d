"""`python -m tests.faults`: the long form of the fault matrix, which writes docs/reports/faults.md.

    python -m tests.faults                        10,000 messages per case, 51 cases, over an hour
    python -m tests.faults --per-second 220       the same in about an hour; two cores still sustain this rate
    python -m tests.faults --messages 500         shorter; the page states the number
    python -m tests.faults --only kill,network    some faults only; prints, writes nothing

Brokers and processes run with default time-outs. Exit status 1 if a case lost a message or its fault missed its point;
the other cases still run.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.report import Figures, write
from tests.support.faults.accounting import Sink
from tests.support.faults.cases import CaseResult, check_copies, run_case, wait_for_empty_queue
from tests.support.faults.faults import FAULTS, RARE_FAULTS
from tests.support.faults.points import POINTS
from tests.support.faults.takeover import SETTINGS as TAKEOVER_SETTINGS
from tests.support.faults.takeover import take_over, write_queue_entries
from tests.support.faults.volume import Volume
from tests.support.servers import kafka
from tests.support.servers.mail_cluster import HOSTS, MailCluster

ENTRIES = 100_000
_RARE_POINTS = ("after-append", "in-transaction", "after-remote-250")


@dataclass(slots=True)
class Run:
    """Results so far."""

    accounts: list[CaseResult] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=10_000, help="messages per case (default: 10,000)")
    parser.add_argument("--per-second", type=float, default=150.0, help="rate (default: 150)")
    parser.add_argument("--only", default="", help="comma-separated faults; nothing is written")
    arguments = parser.parse_args()
    faults = arguments.only.split(",") if arguments.only else [*FAULTS, *RARE_FAULTS]
    kafka.prepare()
    run = Run()
    began = time.monotonic()
    takeovers: dict[bool, float] = {}

    def keep() -> None:
        """Write the page after each case, so that an interrupted run leaves its results."""
        if not arguments.only:
            spent = time.monotonic() - began
            write(
                Figures(
                    run.accounts,
                    run.failures,
                    len(cases),
                    arguments.messages,
                    arguments.per_second,
                    takeovers,
                    ENTRIES,
                    spent,
                )
            )

    with kafka.cluster(3) as brokers, tempfile.TemporaryDirectory(prefix="eilpost-faults-") as folder:
        cases = [
            (fault, point)
            for points in POINTS.values()
            for point in points
            for fault in faults
            if fault not in RARE_FAULTS or point in _RARE_POINTS
        ]
        cluster = MailCluster(brokers, Path(folder) / "matrix", defaults=True)
        cluster.make_topics()
        try:
            cluster.start()
            cluster.wait_for_owners()
            asyncio.run(run_matrix(cluster, cases, run, arguments.messages, arguments.per_second, keep))
        finally:
            cluster.stop()
        for kill in () if arguments.only else (False, True):
            takeovers[kill] = _takeover(brokers, Path(folder), kill=kill)
            keep()
    for failure in run.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print(f"{len(run.accounts)} of {len(cases)} cases passed on {platform.node()}")
    return 1 if run.failures else 0


async def run_matrix(
    cluster: MailCluster,
    cases: list[tuple[str, str]],
    run: Run,
    messages: int,
    per_second: float,
    keep: Callable[[], None],
) -> None:
    async with Sink(port=cluster.sink_port, hosts=HOSTS) as sink:
        for round_number, (fault, point) in enumerate(cases):
            try:
                account = await run_case(
                    cluster, sink, fault, (point,), count=messages, per_second=per_second, round_number=round_number
                )
                left = await wait_for_empty_queue(cluster)
                assert not left, left[:5]
                check_copies([account], sink)
                run.accounts.append(account)
            except Exception as error:  # a failed case does not stop the matrix
                _failed(run, fault, point, error)
            try:
                await asyncio.to_thread(_mend, cluster)
            except Exception as error:
                _failed(run, fault, point, error, "after it ")
            keep()


def _failed(run: Run, fault: str, point: str, error: Exception, when: str = "") -> None:
    run.failures.append(f"{fault} x {point}: {when}{type(error).__name__}: {str(error)[:2000]}")
    print(run.failures[-1], flush=True)
    traceback.print_exception(error)


def _mend(cluster: MailCluster) -> None:
    """Restore every component before the next case."""
    assert isinstance(cluster.spool, Volume)
    cluster.spool.mount()
    for node in cluster.brokers.nodes:
        node.thaw()
    cluster.brokers.start()
    cluster.start()
    cluster.wait_for_owners()


def _takeover(brokers: kafka.Cluster, folder: Path, *, kill: bool) -> float:
    """Seconds until another owner has loaded a shard with many deferred deliveries."""
    cluster = MailCluster(
        brokers,
        folder / f"takeover-{kill}",
        counts={"router": 2},
        settings=TAKEOVER_SETTINGS,
        faulty=False,
        defaults=True,
    )
    cluster.make_topics()
    try:
        asyncio.run(write_queue_entries(cluster, ENTRIES, 1))
        cluster.start()
        seconds = asyncio.run(take_over(cluster, ENTRIES, 1, kill=kill))
        print(f"{ENTRIES} deferred deliveries taken over in {seconds:.1f} s ({'SIGKILL' if kill else 'SIGTERM'})")
        return seconds
    finally:
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
