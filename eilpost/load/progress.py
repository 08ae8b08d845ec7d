"""Progress display of a load on stderr: a panel on a terminal, else a line every ten seconds."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eilpost.load.ledger import Ledger
from eilpost.load.report import format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

_DRAW_SECONDS = 0.5
_LINE_SECONDS = 10.0
_AVERAGING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters and accept latencies at one time."""

    at: float
    accepted: int
    delivered: int
    accept_counts: Sequence[int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The displayed values. Rates (per second) and latencies are those of the last seconds."""

    phase: str  # "sending", "settling"
    elapsed: float
    sent_share: float  # share of the sending, 0 to 1
    accepted: int
    delivered: int
    bounced: int
    in_flight: int
    retried: int
    refused: int
    in_doubt: int
    duplicates: int
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
        self._samples: deque[Sample] = deque([self._sample(started_at)])

    def _sample(self, now: float) -> Sample:
        ledger = self._ledger
        counts = ledger.counts
        return Sample(now, counts.accepted, counts.delivered, ledger.accept.counts())

    def snapshot(self, phase: str, sent_share: float, now: float) -> Snapshot:
        sample = self._sample(now)
        self._samples.append(sample)
        while len(self._samples) > 2 and self._samples[1].at <= now - _AVERAGING_SECONDS:
            self._samples.popleft()
        first, ledger = self._samples[0], self._ledger
        counts, oldest = ledger.counts, ledger.oldest_dot()
        seconds = max(now - first.at, 1e-9)
        return Snapshot(
            phase=phase,
            elapsed=now - self._started_at,
            sent_share=sent_share,
            accepted=counts.accepted,
            delivered=counts.delivered,
            bounced=counts.bounced,
            in_flight=ledger.in_flight,
            retried=counts.retried,
            refused=counts.refused,
            in_doubt=counts.in_doubt,
            duplicates=counts.duplicates,
            accepted_rate=(sample.accepted - first.accepted) / seconds,
            delivered_rate=(sample.delivered - first.delivered) / seconds,
            accept_p50=ledger.accept.percentile(0.5, since=first.accept_counts),
            accept_p99=ledger.accept.percentile(0.99, since=first.accept_counts),
            oldest_seconds=None if oldest is None else now - oldest,
        )


def one_line(moment: Snapshot) -> str:
    return (
        f"{moment.elapsed:6.0f} s {moment.phase}: accepted {moment.accepted:,} ({moment.accepted_rate:,.0f}/s),"
        f" delivered {moment.delivered:,} ({moment.delivered_rate:,.0f}/s), bounced {moment.bounced:,},"
        f" in flight {moment.in_flight:,}, oldest {format_seconds(moment.oldest_seconds)},"
        f" retried {moment.retried:,}, refused {moment.refused:,}, in doubt {moment.in_doubt:,},"
        f" duplicates {moment.duplicates:,}, dot to 250 p50 {format_seconds(moment.accept_p50)}"
        f" p99 {format_seconds(moment.accept_p99)}"
    )


class Display:
    """Runs concurrently with the load, which sets `phase` and `done`."""

    def __init__(self, meter: RateMeter) -> None:
        self.phase = "sending"
        self.sent_share = 0.0
        self._meter = meter

    async def run(self) -> None:
        """Run until cancelled."""
        await (self._redraw() if sys.stderr.isatty() else self._lines())

    def _moment(self) -> Snapshot:
        return self._meter.snapshot(self.phase, self.sent_share, time.monotonic())

    async def _lines(self) -> None:
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            print(one_line(self._moment()), file=sys.stderr, flush=True)  # noqa: T201

    async def _redraw(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=sys.stderr)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(panel(self._moment()), refresh=True)
                await asyncio.sleep(_DRAW_SECONDS)


def panel(moment: Snapshot) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    accepted = (
        ("accepted", f"{moment.accepted:,}"),
        ("accepted per second", f"{moment.accepted_rate:,.0f}"),
        ("dot to 250, p50", format_seconds(moment.accept_p50)),
        ("dot to 250, p99", format_seconds(moment.accept_p99)),
        ("refused", f"{moment.refused:,}"),
    )
    delivered = (
        ("delivered", f"{moment.delivered:,}"),
        ("delivered per second", f"{moment.delivered_rate:,.0f}"),
        ("bounced", f"{moment.bounced:,}"),
        ("in flight", f"{moment.in_flight:,}"),
        ("oldest in flight", format_seconds(moment.oldest_seconds)),
    )
    troubles = (
        ("retried", f"{moment.retried:,}"),
        ("in doubt", f"{moment.in_doubt:,}"),
        ("duplicates", f"{moment.duplicates:,}"),
        ("", ""),
        ("", ""),
    )
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(style="dim")
        table.add_column(justify="right")
    for left, middle, right in zip(accepted, delivered, troubles, strict=True):
        table.add_row(*left, *middle, *right)
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(f"{moment.phase} {moment.elapsed:.0f} s", style="bold"),
        ProgressBar(total=1.0, completed=min(1.0, moment.sent_share), width=50),
        Text(f"{100 * min(1.0, moment.sent_share):.0f} %"),
    )
    return Group(head, table)
