"""Delivery dashboard: attempts, their results by provider, and limits."""

from deploy.grafana.board import Board
from deploy.grafana.indicators import DEFERRED_LEVELS, FAILED_LEVELS, deferred
from deploy.grafana.panels import (
    ANY_IS_BAD,
    BYTES_PER_SECOND,
    COUNT,
    ORANGE,
    PER_SECOND,
    RED,
    SECONDS,
    SHARE,
    heat_map,
    lines,
    number,
    number_per_second,
    percentage,
    steps,
    value_table,
)
from deploy.grafana.promql import PROCESS, by_process, percentiles, rate, rate_by, share, total

_BY_PROVIDER = rate("delivery_attempts_total", "provider")
_REFUSED_BY_POLICY = f"{rate('delivery_failures_total', 'provider', status='~[45][.]7')} / ({_BY_PROVIDER} > 0)"


def _provider_share(result: str) -> str:
    return f"({rate('delivery_attempts_total', 'provider', result=result)}) / ({_BY_PROVIDER} > 0)"


_STATS = (
    number_per_second(1, "Attempts", rate("delivery_attempts_total")).description("Recipients attempted, per second."),
    number_per_second(2, "Delivered", rate("delivered_messages_total")).description(
        "Deliveries per second of which at least one recipient was delivered."
    ),
    number(3, "Content delivered", rate("delivered_bytes_total"), BYTES_PER_SECOND)
    .decimals(1)
    .description("Size of the deliveries made, per second."),
    deferred(4).description("Share of the attempted recipients that were deferred. The alert is at 20 %."),
    percentage(5, "Failed", share(rate("delivery_attempts_total", result="failed"), rate("delivery_attempts_total")))
    .thresholds(steps(*FAILED_LEVELS))
    .description("Share of the attempted recipients that failed for good."),
    number(6, "Suspended sources", total("delivery_sources_suspended"))
    .thresholds(ANY_IS_BAD)
    .description("Source addresses that cannot be used at the moment and are suspended."),
)

_RESULTS = (
    lines(10, "Recipients by result", rate_by("delivery_attempts_total", "result"), stacked=True).description(
        "Recipients attempted per second: delivered, deferred (tried again later), failed."
    ),
    lines(
        11, "Failures by status", {"{{status}}": f"{rate('delivery_failures_total', 'status')} > 0"}, stacked=True
    ).description(
        "Recipients deferred (4.x) or failed (5.x) by class and subject of the enhanced status code: 1 address, 2 "
        "mailbox, 3 mail system, 4 network, 5 protocol, 6 content, 7 policy."
    ),
    lines(
        12,
        "Refused by policy, by provider",
        {"{{provider}}": _REFUSED_BY_POLICY},
        SHARE,
        limits=((0.1, RED),),
    ).description(
        "Share of the recipients attempted at a provider that were answered with X.7.X. The alert is at 10 %."
    ),
    lines(18, "Delivered by transport", rate_by("delivered_messages_total", "transport"), stacked=True).description(
        "Deliveries per second into mailboxes, by SMTP and by LMTP."
    ),
    value_table(
        13,
        "Providers",
        {
            "attempts": (f"{_BY_PROVIDER} > 0", PER_SECOND),
            "delivered": (_provider_share("delivered"), SHARE),
            "deferred": (_provider_share("deferred"), SHARE, DEFERRED_LEVELS),
            "failed": (_provider_share("failed"), SHARE, FAILED_LEVELS),
            "refused by policy": (_REFUSED_BY_POLICY, SHARE, ((0.05, ORANGE), (0.1, RED))),
        },
        ("provider",),
    )
    .span(24)
    .height(6)
    .description("Attempts by provider: 20 well-known ones, `other`, and `local` for our own mailboxes."),
)

_TIME_AND_LIMITS = (
    lines(
        14, "Duration of an attempt", percentiles("delivery_attempt_duration_seconds", "transport"), SECONDS
    ).description("By transport. An attempt by SMTP includes the connection where a new one is made."),
    heat_map(19, "Duration of an attempt, distribution", "delivery_attempt_duration_seconds").description(
        "Attempts per second by duration, all transports."
    ),
    lines(15, "Connection errors", rate_by("delivery_connection_errors_total", "kind")).description(
        "Outgoing connections that failed: time-out, refused, unreachable, no or a negative greeting."
    ),
    lines(
        16,
        "In flight",
        {"deliveries": total("delivery_in_flight"), "connections": total("delivery_connections")},
        COUNT,
    ).description(
        "Deliveries being attempted (at most delivery.max_in_flight_deliveries in a process) and open connections."
    ),
    lines(17, "Waiting for a slot", percentiles("delivery_slot_wait_seconds"), SECONDS).description(
        "Time that deliveries wait for a slot or for a connection to their site. Those that do not wait are not "
        "counted."
    ),
    lines(20, "Deliveries in flight by process", by_process(total("delivery_in_flight", PROCESS)), COUNT).description(
        "Is the load shared out evenly?"
    ),
)

BOARD = Board(
    "delivery",
    "eilpost-delivery",
    "Delivery",
    "Attempts by result, failures by status and provider, and the limits of delivery.",
    (("", _STATS), ("Results", _RESULTS), ("Time and limits", _TIME_AND_LIMITS)),
)
