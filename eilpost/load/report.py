"""Report of a load as text and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from eilpost.load.histogram import Histogram
from eilpost.load.ledger import Ledger
from eilpost.load.workload import Workload

MAX_LISTED = 20
_OTHER_NAMES = {"issued", "resent", "deferrals", "arrivals"}  # of `Counts`, which JSON names otherwise or omits

_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_WARN, _BAD, _DIM = "yellow", "bold red", "dim"


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """Data of a load that is not in its ledger."""

    targets: tuple[str, ...]
    sink: str
    sessions: int
    rate: float  # requested; 0: no limit
    sending_seconds: float
    seconds: float
    connections: int
    unsent: int  # messages started, without a final result
    interrupted: bool


@dataclass(frozen=True, slots=True)
class LoadResult:
    workload: Workload
    ledger: Ledger
    summary: LoadSummary

    @property
    def open(self) -> int:
        """Recipients accepted, and neither delivered nor bounced."""
        return self.ledger.in_flight

    @property
    def lost(self) -> int:
        """Lost recipients; 0 for an interrupted load, where open recipients are unfinished."""
        return 0 if self.summary.interrupted else self.open

    @property
    def wrong(self) -> int:
        """Incorrect copies and reports."""
        counts = self.ledger.counts
        return counts.damaged + counts.misdirected + counts.unexpected + counts.wrong_bounces

    @property
    def status(self) -> int:
        if self.summary.interrupted:
            return 130
        counts = self.ledger.counts
        return 1 if self.lost or self.wrong or self.summary.unsent or counts.refused or not counts.accepted else 0

    @property
    def rates(self) -> tuple[float, float]:
        """Accepted per second between the first and the last 250, delivered per second between the first and the last
        message or report at the sink."""
        ledger = self.ledger
        return (
            _rate(ledger.counts.accepted, ledger.last_accepted_at - ledger.first_accepted_at),
            _rate(ledger.counts.delivered, ledger.last_arrival_at - ledger.first_arrival_at),
        )


def as_json(result: LoadResult) -> dict[str, Any]:
    """Durations in seconds, sizes in bytes; counts are recipients except `messages`."""
    ledger, summary, counts = result.ledger, result.summary, result.ledger.counts
    accepted_rate, delivered_rate = result.rates
    return {
        "run": ledger.run,
        "targets": list(summary.targets),
        "sink": summary.sink,
        "interrupted": summary.interrupted,
        "seconds": round(summary.seconds, 3),
        "sending_seconds": round(summary.sending_seconds, 3),
        "messages": counts.issued,
        "recipients": counts.issued * ledger.recipients,
        **{name: count for name, count in asdict(counts).items() if name not in _OTHER_NAMES},
        "resent_after_dot": counts.resent,
        "sink_deferrals": counts.deferrals,
        "lost": result.lost,
        "unfinished": result.open if summary.interrupted else 0,
        "unsent": summary.unsent,
        "refusals": _texts(ledger.replies),
        "temporary_refusals": _texts(ledger.deferral_replies),
        "duplicate_ids": ledger.duplicate_ids,
        "connections": summary.connections,
        "connection_errors": _texts(ledger.connection_errors),
        "accepted_per_second": round(accepted_rate, 1),
        "delivered_per_second": round(delivered_rate, 1),
        "accept_seconds": _percentiles(ledger.accept),
        "end_to_end_seconds": _percentiles(ledger.end_to_end),
        "open": [
            {
                "id": lost.id,
                "recipient": result.workload.address(lost.recipient_index),
                "queue_id": lost.queue_id or None,
                "deferred": lost.deferred,
            }
            for lost in ledger.open(MAX_LISTED)
        ],
    }


Line = list[tuple[str, str]]


def lines(result: LoadResult) -> Iterator[Line]:
    """Lines of (text, style) parts for `eilpost/output.py`."""
    ledger, summary, counts = result.ledger, result.summary, result.ledger.counts
    accepted_rate, delivered_rate = result.rates
    yield [
        (f"load {ledger.run}", "bold"),
        (f" to {', '.join(summary.targets)}, sink {summary.sink}: {counts.issued:,} messages", ""),
        (f" in {summary.sending_seconds:.1f} s over {summary.sessions} sessions;", ""),
        (f" ended after {summary.seconds:.1f} s", ""),
    ]
    yield []
    requested = f" of {summary.rate:,g}/s requested" if summary.rate and ledger.recipients == 1 else ""
    megabytes = counts.accepted_bytes / 1e6
    yield _row("accepted", counts.accepted, f"{accepted_rate:,.1f}/s{requested}, {megabytes:,.1f} MB")
    yield _row("delivered", counts.delivered, f"{delivered_rate:,.1f}/s")
    yield _row("bounced", counts.bounced)
    if summary.interrupted:
        yield _row("unfinished", result.open, "interrupted: not counted as lost", _WARN)
    else:
        yield _row("lost", result.lost, style=_BAD)
    yield _row(
        "duplicates", counts.duplicates, _share_text(counts.duplicates_resent, "sent again after 4xx to the dot"), _WARN
    )
    yield _row("in doubt", counts.in_doubt, _share_text(counts.in_doubt_settled, "arrived"), _WARN)
    yield _row("refused", counts.refused, style=_BAD)
    yield _row("retried", counts.retried, style=_WARN)
    if summary.unsent:
        note = "interrupted" if summary.interrupted else "no target accepted them"
        yield _row("unsent", summary.unsent, note, _WARN if summary.interrupted else _BAD)
    yield _row(
        "connections", summary.connections, f"{counts.connections_refused:,} refused, {counts.connections_lost:,} lost"
    )
    for name, count, note in (
        ("damaged", counts.damaged, "arrived with a changed body"),
        ("misdirected", counts.misdirected, "arrived for a recipient that is not in the message"),
        ("unexpected", counts.unexpected, "arrived although refused"),
        ("wrong bounces", counts.wrong_bounces, "reports of a failure at a destination that accepts mail"),
        ("bounced again", counts.duplicate_bounces, "second reports"),
        ("foreign", counts.foreign, "messages at the sink from another run"),
    ):
        if count:
            yield _row(name, count, note, _WARN if name in ("foreign", "bounced again") else _BAD)
    yield []
    yield [("".join([f"{'':<14}", *(f"{name:>12}" for name in _PERCENTILES)]), _DIM)]
    yield _latencies("dot to 250", ledger.accept)
    yield _latencies("dot to sink", ledger.end_to_end)
    yield from _causes(result)


def _causes(result: LoadResult) -> Iterator[Line]:
    ledger, summary = result.ledger, result.summary
    for title, texts in (
        ("refused", ledger.replies),
        ("retried", ledger.deferral_replies),
        ("connection", ledger.connection_errors),
    ):
        if texts:
            yield []
        for text, count in texts.most_common(10):
            yield [(f"{title:<11}", _DIM), (f"{count:>9,}  ", ""), (text, "")]
    if result.open:
        yield []
    for lost in ledger.open(MAX_LISTED):
        trace_command = f", eilpost trace {lost.queue_id}" if lost.queue_id else ""
        cause = ", deferred by the sink, no retry" if lost.deferred else ""
        label, style = ("unfinished", _WARN) if summary.interrupted else ("lost", _BAD)
        yield [
            (label, style),
            (f" {lost.id} to {result.workload.address(lost.recipient_index)}{cause}{trace_command}", ""),
        ]
    if result.open > MAX_LISTED:
        yield [(f"and {result.open - MAX_LISTED:,} more", "")]


def hint(result: LoadResult) -> str:
    """The probable cause when mail did not arrive; empty if unknown."""
    counts = result.ledger.counts
    if result.summary.interrupted:
        return ""
    if any("5.1.8" in text for text in result.ledger.replies):
        return (
            "the server refused the sender because its domain is not in DNS (5.1.8): set"
            " ingress.sender_check_exempts_relay_networks = true, and add the address of this machine to"
            " ingress.relay_networks; docs/load.md has the command for the demo"
        )
    if not counts.accepted:
        return "the server accepted nothing"
    if not counts.arrivals or (counts.wrong_bounces and not counts.delivered):
        reason = "nothing arrived at the sink" if not counts.arrivals else "every message bounced"
        return (
            f'{reason}: the server must relay to the sink: set delivery.relay = "smtp://{result.summary.sink}" in its'
            " configuration, with an address of the sink that it can reach, and restart it"
        )
    if result.summary.unsent:
        return f"no target accepted {result.summary.unsent:,} messages until the end: the load fails"
    if counts.refused:
        return f"the server refused {counts.refused:,} recipients with 5xx: the load fails"
    if any(lost.deferred for lost in result.ledger.open(MAX_LISTED)) and result.lost:
        return "mail deferred by the sink waits for its retry (router.retry_delays): --settle must be longer than that"
    return ""


def _row(name: str, count: int, note: str = "", style: str = "") -> Line:
    return [(f"{name:<13}", ""), (f"{count:>12,}", style if count else ""), (f"  {note}" if note else "", _DIM)]


def _share_text(count: int, property_text: str) -> str:
    return f"{count:,} of them {property_text}" if count else ""


def _latencies(name: str, histogram: Histogram) -> Line:
    values = (histogram.percentile(share) for share in _PERCENTILES.values())
    return [("".join([f"{name:<14}", *(f"{format_seconds(value):>12}" for value in values)]), "")]


def format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _percentiles(histogram: Histogram) -> dict[str, float | None]:
    percentiles = {name: histogram.percentile(share) for name, share in _PERCENTILES.items()}
    return {name: None if value is None else round(value, 6) for name, value in percentiles.items()}


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _texts(texts: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"text": text, "count": count} for text, count in sorted(texts.items(), key=lambda item: -item[1])]
