"""docs/reports/faults.md: the table of the long matrix, with the machine, the versions and the date it was made on.

In charge of the page only.
"""

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
from tests.support.faults.cases import CaseResult
from tests.support.faults.faults import FAULTS, RARE_FAULTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reports" / "faults.md"

POINT_NAMES: Mapping[str, str] = {
    "before-dot": "ingress: inside DATA, before the dot",
    "after-append": "ingress: appended, before the 250",
    "after-250": "ingress: after the 250",
    "in-transaction": "router: inside its transaction",
    "after-commit": "router: committed, and does not know",
    "in-data": "delivery: inside the remote DATA",
    "after-remote-250": "delivery: after the remote 250, before the report",
    "after-keep": "delivery: kept in the mailbox, before the report",
    "after-report": "delivery: reported, before the mark",
}

_HEAD = """\
# Faults: what is lost and what comes twice

Written by `make faults`; do not edit. **accepted - delivered - bounced - queued = lost**, recipient by recipient of
every message that got its 250, on three Kafka brokers, two processes of each role, an SMTP sink of eight sites and the
mailboxes of one folder. A cell is one fault at one instant of one process: the process stops itself exactly there
(`tests/support/faults/points.py`), the fault happens, and it goes on or is replaced; mail flows all the while. A cell
in
which the fault did not hit its instant fails. The short form, several instants at a time, is part of `make test`.

* *In doubt*: the client got no answer after its dot, or a 451 for an append that was not confirmed. It may arrive; the
  client sends it again.
* *Twice*: copies beyond the first at the sink. *At work*: what the delivery processes concerned had begun and not
yet
  marked at the instant of the fault, written down inside them (`tests/support/faults/attempt_ledger.py`): the process
  that was hit, or
  both where the fault is what all need (a broker, the spool). *At most*: what the cell allows. After `kill -9` and
  SIGSTOP that is what was at work. A process that lives and is cut off from its log goes on with what it has taken, so
  after every other fault it is what was at work and what was begun since, without what was marked in the end; and no
  more than these processes may have at work at the same time (`delivery.in_flight`, 50 here). Where nobody lost a
  shard, all was marked, and *at most* is 0. Into a mailbox nothing came twice: no delivery id is there a second time.
* *Longest wait*: from the dot to the arrival, of the message that waited longest; an accepted message is never lost by
  waiting. After `kill -9` and SIGSTOP of a router or a delivery it is `log.session_timeout` (7 s by default) and a
  rebalance. An ingress has no shard that anybody waits for: its clients connect anew, to it or to another, or wait
  until it wakes.
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """`takeovers`: seconds, by whether the owner was killed (True) or told to go."""

    accounts: Sequence[CaseResult]
    failures: Sequence[str]
    cells: int  # that were to be run
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
        f"Run of {now:%Y-%m-%d %H:%M} UTC, {figures.seconds / 60:.0f} minutes: {figures.messages} messages a cell,"
        f" {figures.per_second:.0f} a second. eilpost {version('eilpost')} at {commit}, Apache Kafka {jars.VERSION},"
        f" aiokafka {version('aiokafka')}, Python {platform.python_version()}, {os.cpu_count()} cores for everything.",
        "",
        f"**Of {figures.cells} cells {len(figures.accounts)} passed, {len(figures.failures)} failed;"
        f" {sum(account.accepted for account in figures.accounts)} recipients accepted,"
        f" {sum(account.lost for account in figures.accounts)} lost.**",
    ]


def _table(figures: Figures) -> list[str]:
    head = (
        "fault", "instant", "accepted", "delivered", "bounced", "queued", "lost", "in doubt", "twice", "at work",
        "at most", "longest wait",
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
    lines = ["", "## A full shard changes hands", ""]
    for killed, seconds in figures.takeovers.items():
        how = (
            "killed (the session time-out is part of it)"
            if killed
            else "told to go by SIGTERM (its drain is part of it)"
        )
        lines.append(
            f"* {figures.lines} deferred deliveries in one router shard, its owner {how}: another owner had them all"
            f" after {seconds:.1f} s."
        )
    return lines
