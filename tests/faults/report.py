"""Writer of docs/reports/faults.md: the result table of the long fault matrix with machine, versions and date."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from deploy.kafka import jars
from eilpost import __version__
from tests.support.faults.cases import CaseResult
from tests.support.faults.faults import FAULTS, RARE_FAULTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reports" / "faults.md"

POINT_NAMES: Mapping[str, str] = {
    "before-dot": "ingress: inside DATA, before the dot",
    "after-append": "ingress: appended, before the 250",
    "after-250": "ingress: after the 250",
    "in-transaction": "router: inside the transaction",
    "after-commit": "router: committed, before the broker's reply",
    "in-data": "delivery: inside the remote DATA",
    "after-remote-250": "delivery: after the remote 250, before the report",
    "after-mailbox-append": "delivery: stored in the mailbox, before the report",
    "after-report": "delivery: reported, before the commit",
}

_HEAD = """\
# Faults: losses and duplicates

Written by `make faults`; do not edit. **accepted - delivered - bounced - queued = lost**, for every recipient of every
message that got its 250, on three Kafka brokers, two processes of each role, an SMTP sink with eight sites and
mailboxes in one folder. A row is one fault at one fault point of one process: the process stops itself at that point
(`tests/support/faults/points.py`), the fault happens, and the process resumes or is replaced, all under load. A case in
which the fault misses its point fails. The short form, with several points at a time, is part of `make test`.

* *In doubt*: the client got no reply after its dot, or a 451 for an append that was not confirmed. The message may
  arrive; the client sends it again.
* *Duplicates*: copies beyond the first at the sink. *In flight*: deliveries that the affected delivery processes had
  started and not committed when the fault began, recorded inside these processes
  (`tests/support/faults/attempt_ledger.py`); the affected processes are the one at the fault point, or both if the
  fault hits a shared dependency (a broker, the spool). *Allowed*: the limit that the case asserts for duplicates. After
  `kill -9` and SIGSTOP it is the number in flight. After any other fault the process continues with the deliveries that
  it has read, so the limit also includes deliveries started later and never committed, up to the concurrency limit of
  these processes (`delivery.max_in_flight_deliveries`, 50 here). If no process lost a shard, everything was
  committed and the limit is 0. Mailboxes got no duplicates: no delivery id occurs twice.
* *Longest wait*: from the dot to the arrival of the slowest message; the wait loses no accepted message. After
  `kill -9` and SIGSTOP of a router or a delivery it is `log.session_timeout` (7 s by default) plus a rebalance. An
  ingress owns no shard: its clients reconnect to it or to another ingress, or wait until it resumes.
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """`takeovers`: seconds, by whether the owner was killed (True) or got SIGTERM (False)."""

    accounts: Sequence[CaseResult]
    failures: Sequence[str]
    cases: int  # planned
    messages: int
    per_second: float
    takeovers: Mapping[bool, float]
    lines: int
    seconds: float


def write(figures: Figures) -> None:
    PAGE.write_text(page(figures, datetime.now(UTC)))


def page(figures: Figures, now: datetime) -> str:
    return "\n".join([_HEAD, *_circumstances(figures, now), "", *_table(figures), *_takeover(figures), ""])


def _circumstances(figures: Figures, now: datetime) -> list[str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=PAGE.parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    return [
        f"Run of {now:%Y-%m-%d %H:%M} UTC, {figures.seconds / 60:.0f} minutes: {figures.messages} messages per case,"
        f" {figures.per_second:.0f} a second. eilpost {__version__} at {commit}, Apache Kafka {jars.VERSION},"
        f" aiokafka {version('aiokafka')}, Python {platform.python_version()}, {os.cpu_count()} cores for everything.",
        "",
        f"**{figures.cases} cases: {len(figures.accounts)} passed, {len(figures.failures)} failed;"
        f" {sum(account.accepted for account in figures.accounts)} recipients accepted,"
        f" {sum(account.lost for account in figures.accounts)} lost.**",
    ]


def _table(figures: Figures) -> list[str]:
    head = (
        "fault", "fault point", "accepted", "delivered", "bounced", "queued", "lost", "in doubt", "duplicates",
        "in flight", "allowed", "longest wait",
    )  # fmt: skip
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * 2 + "---:|" * (len(head) - 2)]
    rank = {fault: number for number, fault in enumerate((*FAULTS, *RARE_FAULTS))}
    for account in sorted(figures.accounts, key=lambda account: rank[account.fault]):
        cells = (
            account.fault_record,
            " + ".join(POINT_NAMES[point] for point in account.points),
            account.accepted,
            account.delivered,
            account.bounced,
            account.queued,
            account.lost,
            account.unknown,
            account.duplicates,
            account.in_flight,
            account.bound,
            f"{account.pause_seconds:.1f} s",
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    rows += [f"\nFAILED: {failure.splitlines()[0]}" for failure in figures.failures]
    return rows


def _takeover(figures: Figures) -> list[str]:
    if not figures.takeovers:
        return []
    lines = ["", "## Takeover of a full shard", ""]
    for killed, seconds in figures.takeovers.items():
        how = "killed (includes the session time-out)" if killed else "stopped with SIGTERM (includes its drain)"
        lines.append(
            f"* {figures.lines} deferred deliveries in one router shard, its owner {how}: another owner had loaded"
            f" all of them after {seconds:.1f} s."
        )
    return lines
