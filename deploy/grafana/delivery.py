"""Delivery dashboard: attempts, their results by provider, and limits."""

from deploy.grafana.board import Board
from deploy.grafana.indicators import DEFERRED_LEVELS, FAILED_LEVELS, deferred
from deploy.grafana.panels import (
    ANY_IS_BAD,
    COUNT,
    ORANGE,
    PER_SECOND,
    RED,
    SECONDS,
    SHARE,
    bytes_per_second,
    heat_map,
    lines,
    number,
    number_per_second,
    percentage,
    value_table,
)
from deploy.grafana.promql import PROCESS, by_process, percentiles, quantile, rate, rate_by, share, total

_BY_PROVIDER = rate("delivery_attempts_total", "provider")
_POLICY = "~[45][.]7"


def _provider_share(result: str) -> str:
    return f"({rate('delivery_attempts_total', 'provider', result=result)}) / ({_BY_PROVIDER} > 0)"


_STATS = (
    number_per_second(1, "Attempts", "Recipients attempted, per second.", rate("delivery_attempts_total")),
    number_per_second(
        2,
        "Delivered",
        "Deliveries per second of which at least one recipient was delivered.",
        rate("delivered_messages_total"),
    ),
    bytes_per_second(3, "Content delivered", "Size of the deliveries made, per second.", rate("delivered_bytes_total")),
    deferred(4, description="Share of the attempted recipients that were deferred. The alert is at 20 %."),
    percentage(
        5,
        "Failed",
        "Share of the attempted recipients that failed for good.",
        share(rate("delivery_attempts_total", result="failed"), rate("delivery_attempts_total")),
        thresholds=FAILED_LEVELS,
    ),
    number(
        6,
        "Suspended sources",
        "Source addresses that cannot be used at the moment and are suspended.",
        total("delivery_sources_suspended"),
        thresholds=ANY_IS_BAD,
    ),
)

_RESULTS = (
    lines(
        10,
        "Recipients by result",
        "Recipients attempted per second: delivered, deferred (tried again later), failed.",
        rate_by("delivery_attempts_total", "result"),
        stacked=True,
    ),
    lines(
        11,
        "Failures by status",
        "Recipients deferred (4.x) or failed (5.x) by class and subject of the enhanced status code: 1 address, 2 "
        "mailbox, 3 mail system, 4 network, 5 protocol, 6 content, 7 policy.",
        {"{{status}}": f"{rate('delivery_failures_total', 'status')} > 0"},
        stacked=True,
    ),
    lines(
        12,
        "Refused by policy, by provider",
        "Share of the recipients attempted at a provider that were answered with X.7.X. The alert is at 10 %.",
        {"{{provider}}": f"{rate('delivery_failures_total', 'provider', status=_POLICY)} / ({_BY_PROVIDER} > 0)"},
        unit=SHARE,
        limits=((0.1, RED),),
    ),
    lines(
        18,
        "Delivered by transport",
        "Deliveries per second into mailboxes, by SMTP and by LMTP.",
        rate_by("delivered_messages_total", "transport"),
        stacked=True,
    ),
    value_table(
        13,
        "Providers",
        "Attempts by provider: 20 well-known ones, `other`, and `local` for our own mailboxes.",
        {
            "attempts": (f"{_BY_PROVIDER} > 0", PER_SECOND),
            "delivered": (_provider_share("delivered"), SHARE),
            "deferred": (_provider_share("deferred"), SHARE),
            "failed": (_provider_share("failed"), SHARE),
            "refused by policy": (
                f"{rate('delivery_failures_total', 'provider', status=_POLICY)} / ({_BY_PROVIDER} > 0)",
                SHARE,
            ),
        },
        ("provider",),
        coloured={
            "deferred": DEFERRED_LEVELS,
            "failed": FAILED_LEVELS,
            "refused by policy": ((0.05, ORANGE), (0.1, RED)),
        },
        width=24,
        height=6,
    ),
)

_TIME_AND_LIMITS = (
    lines(
        14,
        "Duration of an attempt",
        "By transport. An attempt by SMTP includes the connection where a new one is made.",
        {
            "{{transport}} p50": quantile(0.5, "delivery_attempt_duration_seconds", "transport"),
            "{{transport}} p99": quantile(0.99, "delivery_attempt_duration_seconds", "transport"),
        },
        unit=SECONDS,
    ),
    heat_map(
        19,
        "Duration of an attempt, distribution",
        "Attempts per second by duration, all transports.",
        rate("delivery_attempt_duration_seconds_bucket", "le"),
    ),
    lines(
        15,
        "Connection errors",
        "Outgoing connections that failed: time-out, refused, unreachable, no or a negative greeting.",
        rate_by("delivery_connection_errors_total", "kind"),
    ),
    lines(
        16,
        "In flight",
        "Deliveries being attempted (at most delivery.max_in_flight_deliveries in a process) and open connections.",
        {"deliveries": total("delivery_in_flight"), "connections": total("delivery_connections")},
        unit=COUNT,
    ),
    lines(
        17,
        "Waiting for a slot",
        "Time that deliveries wait for a slot or for a connection to their site. Those that do not wait are not "
        "counted.",
        percentiles("delivery_slot_wait_seconds"),
        unit=SECONDS,
    ),
    lines(
        20,
        "Deliveries in flight by process",
        "Is the load shared out evenly?",
        by_process(total("delivery_in_flight", PROCESS)),
        unit=COUNT,
    ),
)

BOARD = Board(
    "delivery",
    "eilpost-delivery",
    "Delivery",
    "Attempts by result, failures by status and provider, and the limits of delivery.",
    (("", _STATS), ("Results", _RESULTS), ("Time and limits", _TIME_AND_LIMITS)),
)
