"""Progress display of a load on stderr: a panel on a terminal, else a line every ten seconds."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from eilpost.load.ledger import Counts, Ledger
from eilpost.load.report import format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

_DRAW_SECONDS = 0.5
_LINE_SECONDS = 10.0
_AVERAGING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The displayed values. Rates (per second) and latencies are those of the last seconds."""

    phase: str  # "sending", "settling"
    elapsed: float
    sent_share: float  # 0 to 1
    counts: Counts
    in_flight: int
    accepted_rate: float
    delivered_rate: float
    accept_p50: float | None
    accept_p99: float | None
    oldest_seconds: float | None


class RateMeter:
    """Rates and latencies of the last seconds."""

    def __init__(self, ledger: Ledger, started_at: float) -> None:
        self._ledger = ledger
        self._started_at = started_at
        self._samples = deque([(started_at, replace(ledger.counts), ledger.accept.counts())])

    def snapshot(self, phase: str, sent_share: float, now: float) -> Snapshot:
        ledger, counts = self._ledger, replace(self._ledger.counts)
        self._samples.append((now, counts, ledger.accept.counts()))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _AVERAGING_SECONDS:
            self._samples.popleft()
        first_at, first, first_accepts = self._samples[0]
        oldest = ledger.oldest_dot()
        seconds = max(now - first_at, 1e-9)
        return Snapshot(
            phase=phase,
            elapsed=now - self._started_at,
            sent_share=sent_share,
            counts=counts,
            in_flight=ledger.in_flight,
            accepted_rate=(counts.accepted - first.accepted) / seconds,
            delivered_rate=(counts.delivered - first.delivered) / seconds,
            accept_p50=ledger.accept.percentile(0.5, since=first_accepts),
            accept_p99=ledger.accept.percentile(0.99, since=first_accepts),
            oldest_seconds=None if oldest is None else now - oldest,
        )


def one_line(snapshot: Snapshot) -> str:
    counts = snapshot.counts
    return (
        f"{snapshot.elapsed:6.0f} s {snapshot.phase}: accepted {counts.accepted:,} ({snapshot.accepted_rate:,.0f}/s),"
        f" delivered {counts.delivered:,} ({snapshot.delivered_rate:,.0f}/s), bounced {counts.bounced:,},"
        f" in flight {snapshot.in_flight:,}, oldest {format_seconds(snapshot.oldest_seconds)},"
        f" retried {counts.retried:,}, refused {counts.refused:,}, in doubt {counts.in_doubt:,},"
        f" duplicates {counts.duplicates:,}, dot to 250 p50 {format_seconds(snapshot.accept_p50)}"
        f" p99 {format_seconds(snapshot.accept_p99)}"
    )


class Display:
    """Runs concurrently with the load, which sets `phase` and `sent_share`."""

    def __init__(self, meter: RateMeter) -> None:
        self.phase = "sending"
        self.sent_share = 0.0
        self._meter = meter

    async def run(self) -> None:
        """Run until cancelled."""
        await (self._redraw() if sys.stderr.isatty() else self._lines())

    def _snapshot(self) -> Snapshot:
        return self._meter.snapshot(self.phase, self.sent_share, time.monotonic())

    async def _lines(self) -> None:
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            print(one_line(self._snapshot()), file=sys.stderr, flush=True)  # noqa: T201

    async def _redraw(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=sys.stderr)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(panel(self._snapshot()), refresh=True)
                await asyncio.sleep(_DRAW_SECONDS)


def panel(snapshot: Snapshot) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    counts, oldest = snapshot.counts, format_seconds(snapshot.oldest_seconds)
    accepted_rate, delivered_rate = round(snapshot.accepted_rate), round(snapshot.delivered_rate)
    p50, p99 = format_seconds(snapshot.accept_p50), format_seconds(snapshot.accept_p99)
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(style="dim")
        table.add_column(justify="right")
    for row in (
        ("accepted", counts.accepted, "delivered", counts.delivered, "retried", counts.retried),
        ("accepted per second", accepted_rate, "delivered per second", delivered_rate, "in doubt", counts.in_doubt),
        ("dot to 250, p50", p50, "bounced", counts.bounced, "duplicates", counts.duplicates),
        ("dot to 250, p99", p99, "in flight", snapshot.in_flight),
        ("refused", counts.refused, "oldest in flight", oldest),
    ):
        table.add_row(*(cell if isinstance(cell, str) else f"{cell:,}" for cell in row))
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(f"{snapshot.phase} {snapshot.elapsed:.0f} s", style="bold"),
        ProgressBar(total=1.0, completed=min(1.0, snapshot.sent_share), width=50),
        Text(f"{100 * min(1.0, snapshot.sent_share):.0f} %"),
    )
    return Group(head, table)
