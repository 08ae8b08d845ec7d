"""`eilpost queue`: the open deliveries with age, state, attempts, next attempt and last reply, and their totals."""

from __future__ import annotations

from datetime import datetime

from eilpost.format import format_addresses, format_age, format_bytes, format_sender, format_state
from eilpost.output import Output
from mail.log import Backlog, HistoryLog
from mail.log.queue_summary import Position, QueueSummary, Totals
from mail.message import DeliveryId, Inline, queue_id_of, queue_id_time
from mail.record import QueueEntry, is_corrupt

_SUMMARY_LINES = 20


async def position_of(log: HistoryLog, delivery_id: DeliveryId) -> Position:
    """The position of a delivery; of one that is not open any more, that of its queue id."""
    queue_id = queue_id_of(delivery_id)
    async for entry in log.queue_entries(queue_id):
        if entry.delivery.id == delivery_id:
            return Position(entry.delivery.message.received, delivery_id)
    return Position(queue_id_time(queue_id), delivery_id)


async def record_bytes(log: HistoryLog, delivery_id: DeliveryId) -> bytes | None:
    """The bytes of a damaged record in quarantine; None if there is none with this id."""
    async for entry in log.queue_entries(queue_id_of(delivery_id)):
        if entry.delivery.id == delivery_id and is_corrupt(entry) and isinstance(entry.content, Inline):
            return entry.content.data
    return None


def totals_json(site: str, state: str, totals: Totals) -> dict[str, object]:
    return {
        "site": site,
        "state": state,
        "deliveries": totals.deliveries,
        "recipients": totals.recipients,
        "bytes": totals.bytes,
        "oldest": None if totals.oldest is None else totals.oldest.isoformat(),
    }


def write(summary: QueueSummary, backlog: Backlog, output: Output, now: datetime, top: int | None = None) -> None:
    """Write two lines for each delivery, then the summary; with `top` only that many lines of the summary."""
    oldest, total = summary.oldest, summary.total
    for entry in oldest if top is None else ():
        message = entry.delivery.message
        recipients = format_addresses([recipient.address for recipient in message.envelope.recipients], 3)
        output.write(
            (entry.delivery.id, "bold"),
            (f"  {format_age(now - message.received):>10}", "cyan"),
            (f"  {format_bytes(message.size_bytes):>8}", "dim"),
            (f"  {f'{format_sender(message)} -> {recipients}' if recipients else 'damaged record of the log'}", ""),
        )
        output.write((f"    {format_state(entry, now)}{_attempts_text(entry)}", "yellow"))
        if entry.last is not None:
            remote = f"{entry.last_remote} replied " if entry.last_remote else ""
            output.write((f"    {remote}{entry.last}", ""))
    if not total.deliveries and summary.not_matching:
        count = f"{summary.not_matching:,} deliveries are" if summary.not_matching > 1 else "1 delivery is"
        output.write((f"no site matches {summary.site!r}; {count} open at other sites", "bold"))
    elif not total.deliveries:
        output.write(("the queue is empty", "bold"))
    else:
        hidden = total.deliveries - summary.before - len(oldest)
        if top is None:
            if hidden:
                following = f"--after {oldest[-1].delivery.id} shows the next"
                output.write((f"... and {hidden:,} more ({following}, --limit 0 shows all)", "dim"))
            output.write()
        _write_totals(summary, output, now, _SUMMARY_LINES if top is None else top)
    if summary.damaged:
        text = f"{summary.damaged:,} queue entries are damaged and not shown; the router replaces them when it starts"
        output.write((text, "bold"))
    if backlog.accepted:
        output.write((f"{backlog.accepted:,} accepted, not routed yet", "dim"))


def _attempts_text(entry: QueueEntry) -> str:
    return f"; {entry.attempts} attempt{'s' if entry.attempts != 1 else ''}" if entry.attempts else ""


def _write_totals(summary: QueueSummary, output: Output, now: datetime, limit: int) -> None:
    output.write((f"{'site':<36} {'state':<10} {'deliveries':>10} {'recipients':>10} {'size':>9}  oldest", "dim"))
    rows = summary.top(limit)
    for site, state, totals in rows:
        output.write((_row(site, state, totals, now), ""))
    if len(summary.totals_by_site) > len(rows):
        hidden = len(summary.totals_by_site) - len(rows)
        output.write((f"... and {hidden} more sites and states (--top 0 shows all)", "dim"))
    output.write((_row("all", "", summary.total, now), "bold"))


def _row(site: str, state: str, totals: Totals, now: datetime) -> str:
    oldest = format_age(now - totals.oldest) if totals.oldest else ""
    counts = f"{totals.deliveries:>10,} {totals.recipients:>10,} {format_bytes(totals.bytes):>9}"
    return f"{site:<36} {state:<10} {counts}  {oldest}"
