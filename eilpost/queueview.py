"""`eilpost queue`: what is open, for how long, why, and when it is tried again.

It reads through the HistoryLog port and changes nothing; memory is bounded by `--limit` however long the queue is.
Next: `eilpost/users.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from eilpost.paper import Paper
from eilpost.words import age_words, names, sender_words, site_words, size_words, state_words
from mail.log import Backlog
from mail.record import Pending, state_name

_SUMMARY_LINES = 20


@dataclass(slots=True)
class Sum:
    deliveries: int = 0
    recipients: int = 0
    bytes: int = 0
    oldest: datetime | None = None

    def add(self, pending: Pending) -> None:
        message = pending.delivery.message
        self.deliveries += 1
        self.recipients += len(message.envelope.recipients)
        self.bytes += message.size_bytes
        self.oldest = message.received if self.oldest is None else min(self.oldest, message.received)


@dataclass(slots=True)
class View:
    """The oldest open deliveries, and sums over all that match."""

    oldest: list[Pending] = field(default_factory=list)
    total: Sum = field(default_factory=Sum)
    sums: dict[tuple[str, str], Sum] = field(default_factory=dict)  # by site and state
    site: str | None = None  # what was asked for
    others: int = 0  # open deliveries that do not match

    def top(self, limit: int) -> list[tuple[str, str, Sum]]:
        """The sites and states with the most recipients; a `limit` of 0 means all."""
        ranked = sorted(self.sums.items(), key=lambda item: -item[1].recipients)
        return [(site, state, each) for (site, state), each in ranked[: limit or None]]


def sum_json(site: str, state: str, each: Sum) -> dict[str, object]:
    """The deliveries of one site in one state for programs."""
    return {
        "site": site,
        "state": state,
        "deliveries": each.deliveries,
        "recipients": each.recipients,
        "bytes": each.bytes,
        "oldest": None if each.oldest is None else each.oldest.isoformat(),
    }


async def look(lines: AsyncIterator[Pending], *, site: str | None, limit: int) -> View:
    """Gather a view. `site` is matched as a part of the site's name; a `limit` of 0 means all."""
    view = View(site=site)
    heap: list[tuple[float, str, Pending]] = []  # the newest of the oldest is on top
    async for pending in lines:
        name = site_words(pending.delivery.route)
        if site is not None and site not in name and site not in pending.delivery.route.site:
            view.others += 1
            continue
        view.total.add(pending)
        view.sums.setdefault((name, state_name(pending.state)), Sum()).add(pending)
        item = (-pending.delivery.message.received.timestamp(), pending.delivery.id, pending)
        if not limit or len(heap) < limit:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    view.oldest = [pending for _, _, pending in sorted(heap, reverse=True)]
    return view


def write(view: View, backlog: Backlog, paper: Paper, now: datetime, top: int | None = None) -> None:
    """Write the view: two lines for each delivery, then the summary. With `top`, so many lines of the summary alone."""
    for pending in view.oldest if top is None else ():
        message = pending.delivery.message
        recipients = names([each.address for each in message.envelope.recipients], 3)
        paper.write(
            (pending.delivery.id, "bold"),
            (f"  {age_words(now - message.received):>10}", "cyan"),
            (f"  {size_words(message.size_bytes):>8}", "dim"),
            (f"  {sender_words(message)} -> {recipients}", ""),
        )
        paper.write((f"    {state_words(pending, now)}{_tried(pending)}", "yellow"))
        if pending.last is not None:
            said = f"{pending.last_remote} said " if pending.last_remote else ""
            paper.write((f"    {said}{pending.last}", ""))
    if not view.total.deliveries and view.others:
        count = f"{view.others:,} deliveries are" if view.others > 1 else "1 delivery is"
        paper.write((f"no site has {view.site!r} in its name; {count} open elsewhere", "bold"))
    elif not view.total.deliveries:
        paper.write(("the queue is empty", "bold"))
    else:
        hidden = view.total.deliveries - len(view.oldest)
        if top is None:
            if hidden:
                paper.write((f"... and {hidden:,} more (--limit 0 shows all)", "dim"))
            paper.write()
        _summary(view, paper, now, _SUMMARY_LINES if top is None else top)
    if backlog.accepted:
        paper.write((f"{backlog.accepted:,} accepted just now, not yet read by the router", "dim"))


def _tried(pending: Pending) -> str:
    return f"; tried {pending.attempts} time{'s' if pending.attempts != 1 else ''}" if pending.attempts else ""


def _summary(view: View, paper: Paper, now: datetime, limit: int) -> None:
    paper.write((f"{'site':<36} {'state':<10} {'deliveries':>10} {'recipients':>10} {'size':>9}  oldest", "dim"))
    shown = view.top(limit)
    for site, state, each in shown:
        paper.write((_row(site, state, each, now), ""))
    if len(view.sums) > len(shown):
        paper.write((f"... and {len(view.sums) - len(shown)} more sites and states (--top 0 shows all)", "dim"))
    paper.write((_row("all", "", view.total, now), "bold"))


def _row(site: str, state: str, each: Sum, now: datetime) -> str:
    oldest = age_words(now - each.oldest) if each.oldest else ""
    return f"{site:<36} {state:<10} {each.deliveries:>10,} {each.recipients:>10,} {size_words(each.bytes):>9}  {oldest}"
