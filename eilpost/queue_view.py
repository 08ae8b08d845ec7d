"""`eilpost queue`: the open deliveries with age, state, attempts, next attempt and last reply.

It reads through the HistoryLog port. `--limit` bounds its memory for a queue of any length.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from eilpost.format import format_addresses, format_age, format_bytes, format_sender, format_site, format_state
from eilpost.output import Output
from mail.log import Backlog
from mail.record import QueueEntry, state_name

_SUMMARY_LINES = 20


@dataclass(slots=True)
class Totals:
    deliveries: int = 0
    recipients: int = 0
    bytes: int = 0
    oldest: datetime | None = None

    def add(self, entry: QueueEntry) -> None:
        message = entry.delivery.message
        self.deliveries += 1
        self.recipients += len(message.envelope.recipients)
        self.bytes += message.size_bytes
        self.oldest = message.received if self.oldest is None else min(self.oldest, message.received)


@dataclass(slots=True)
class QueueView:
    """The oldest matching deliveries, and the totals of all matching ones."""

    oldest: list[QueueEntry] = field(default_factory=list)
    total: Totals = field(default_factory=Totals)
    totals_by_site: dict[tuple[str, str], Totals] = field(default_factory=dict)  # by site and state
    site: str | None = None
    not_matching: int = 0

    def top(self, limit: int) -> list[tuple[str, str, Totals]]:
        """The sites and states with the most recipients; a `limit` of 0 means all."""
        ranked = sorted(self.totals_by_site.items(), key=lambda item: -item[1].recipients)
        return [(site, state, totals) for (site, state), totals in ranked[: limit or None]]


def totals_json(site: str, state: str, totals: Totals) -> dict[str, object]:
    return {
        "site": site,
        "state": state,
        "deliveries": totals.deliveries,
        "recipients": totals.recipients,
        "bytes": totals.bytes,
        "oldest": None if totals.oldest is None else totals.oldest.isoformat(),
    }


async def load(entries: AsyncIterator[QueueEntry], *, site: str | None, limit: int) -> QueueView:
    """Read the queue. `site` matches a part of the site's name; a `limit` of 0 means all."""
    view = QueueView(site=site)
    heap: list[tuple[float, str, QueueEntry]] = []  # the newest of the oldest is on top
    async for entry in entries:
        name = format_site(entry.delivery.route)
        if site is not None and site not in name and site not in entry.delivery.route.site:
            view.not_matching += 1
            continue
        view.total.add(entry)
        view.totals_by_site.setdefault((name, state_name(entry.state)), Totals()).add(entry)
        item = (-entry.delivery.message.received.timestamp(), entry.delivery.id, entry)
        if not limit or len(heap) < limit:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    view.oldest = [entry for _, _, entry in sorted(heap, reverse=True)]
    return view


def write(view: QueueView, backlog: Backlog, output: Output, now: datetime, top: int | None = None) -> None:
    """Write two lines for each delivery, then the summary; with `top` only that many lines of the summary."""
    for entry in view.oldest if top is None else ():
        message = entry.delivery.message
        recipients = format_addresses([recipient.address for recipient in message.envelope.recipients], 3)
        output.write(
            (entry.delivery.id, "bold"),
            (f"  {format_age(now - message.received):>10}", "cyan"),
            (f"  {format_bytes(message.size_bytes):>8}", "dim"),
            (f"  {format_sender(message)} -> {recipients}", ""),
        )
        output.write((f"    {format_state(entry, now)}{_attempts_text(entry)}", "yellow"))
        if entry.last is not None:
            remote = f"{entry.last_remote} replied " if entry.last_remote else ""
            output.write((f"    {remote}{entry.last}", ""))
    if not view.total.deliveries and view.not_matching:
        count = f"{view.not_matching:,} deliveries are" if view.not_matching > 1 else "1 delivery is"
        output.write((f"no site matches {view.site!r}; {count} open at other sites", "bold"))
    elif not view.total.deliveries:
        output.write(("the queue is empty", "bold"))
    else:
        hidden = view.total.deliveries - len(view.oldest)
        if top is None:
            if hidden:
                output.write((f"... and {hidden:,} more (--limit 0 shows all)", "dim"))
            output.write()
        _write_summary(view, output, now, _SUMMARY_LINES if top is None else top)
    if backlog.accepted:
        output.write((f"{backlog.accepted:,} accepted, not routed yet", "dim"))


def _attempts_text(entry: QueueEntry) -> str:
    return f"; {entry.attempts} attempt{'s' if entry.attempts != 1 else ''}" if entry.attempts else ""


def _write_summary(view: QueueView, output: Output, now: datetime, limit: int) -> None:
    output.write((f"{'site':<36} {'state':<10} {'deliveries':>10} {'recipients':>10} {'size':>9}  oldest", "dim"))
    rows = view.top(limit)
    for site, state, totals in rows:
        output.write((_row(site, state, totals, now), ""))
    if len(view.totals_by_site) > len(rows):
        hidden = len(view.totals_by_site) - len(rows)
        output.write((f"... and {hidden} more sites and states (--top 0 shows all)", "dim"))
    output.write((_row("all", "", view.total, now), "bold"))


def _row(site: str, state: str, totals: Totals, now: datetime) -> str:
    oldest = format_age(now - totals.oldest) if totals.oldest else ""
    counts = f"{totals.deliveries:>10,} {totals.recipients:>10,} {format_bytes(totals.bytes):>9}"
    return f"{site:<36} {state:<10} {counts}  {oldest}"
