"""Queue dashboard: the routers, open recipients, their age, and the ledger."""

from deploy.grafana.board import Board
from deploy.grafana.indicators import LATE_LEVELS, OLDEST_RUNNABLE, ledger_drift, oldest_runnable, quarantined
from deploy.grafana.panels import BYTES_PER_SECOND, COUNT, ORANGE, RED, SECONDS, SHARE, heat_map, lines, number, steps
from deploy.grafana.promql import age, late_share, percentiles, quantile, rate, rate_by, series, total, total_by

_STATS = (
    number(1, "In the queue", total("queue_recipients")).description("Recipients in the queue, in every state."),
    number(2, "Runnable", total("queue_runnable_recipients")).description(
        "Recipients that could be delivered now: active, throttled, and deferred whose retry time has come."
    ),
    oldest_runnable(3).description(
        "How long the oldest runnable delivery has been runnable. The alert is at 15 minutes."
    ),
    number(4, "First attempt (p99)", quantile(0.99, "first_attempt_delay_seconds"), SECONDS)
    .thresholds(steps((30, ORANGE), (60, RED)))
    .description("From the acceptance of a message to the start of the first attempt."),
    quarantined(5),
    ledger_drift(6),
)

_QUEUE = (
    lines(10, "Queue by state", total_by("queue_recipients", "state"), COUNT, stacked=True).description(
        "active: dispatched; deferred: waits for its retry time; throttled: its site or the shard has reached a limit; "
        "held: quarantined; unresolved: DNS has not answered. Corrupt records have no recipients."
    ),
    lines(
        11,
        "Age of the oldest message by state",
        {"{{state}}": age("queue_oldest_timestamp_seconds", "state"), "runnable": OLDEST_RUNNABLE},
        SECONDS,
    ).description(
        "Time since the oldest message of each state was received, and since the oldest runnable delivery became "
        "runnable."
    ),
    heat_map(14, "Time to the first attempt, distribution", "first_attempt_delay_seconds").description(
        "Deliveries per second by the time from acceptance to the start of the first attempt."
    ),
    lines(15, "Late first attempts", {"late": late_share()}, SHARE, limits=LATE_LEVELS, most=0.25).description(
        "Share of the deliveries whose first attempt began more than 60 s after acceptance. Dashed: the objective "
        "(1 %), and 14.4 times that, where the alert is."
    ),
    lines(
        16,
        "Time in the queue",
        {
            "delivered p50": quantile(0.5, "time_in_queue_seconds", result="delivered"),
            "delivered p99": quantile(0.99, "time_in_queue_seconds", result="delivered"),
            "failed p50": quantile(0.5, "time_in_queue_seconds", result="failed"),
        },
        SECONDS,
        log=True,
    ).description("From the acceptance of a message to the end of each of its deliveries."),
    lines(20, "Runnable recipients", {"runnable": total("queue_runnable_recipients")}, COUNT).description(
        "What could be delivered now: the number that the autoscaler of the delivery role looks at."
    ),
)

_ROUTER = (
    lines(
        12,
        "Messages per second",
        {"received": rate("messages_received_total", result="accepted"), "routed": rate("routed_messages_total")},
    ).description("Accepted by ingress and routed. Routed below received for long: the routers are behind."),
    lines(13, "Recipients routed by kind", rate_by("routed_recipients_total", "kind"), stacked=True).description(
        "mailbox: local; relay and mx: other servers; unresolved: DNS has not answered; failed: refused by the router."
    ),
    lines(17, "Duration of a batch", percentiles("route_duration_seconds"), SECONDS).description(
        "One batch of the router: look-ups, decisions and commit."
    ),
    lines(21, "Bytes routed per second", {"routed": rate("routed_bytes_total")}, BYTES_PER_SECOND).description(
        "Size of the messages routed."
    ),
)

_ACCOUNTING = (
    lines(18, "Ledger entries per second", rate_by("ledger_recipients_total", "entry")).description(
        "accepted + expanded - merged - delivered - failed - discarded is what the queue grows by."
    ),
    lines(
        19,
        "DSNs and suppressed duplicates",
        {
            "DSN {{action}}": rate("dsns_total", "action"),
            "duplicate {{where}}": rate("duplicates_suppressed_total", "where"),
        },
    ).description("Delivery status notifications sent, and repeats that were recognised and had no effect."),
    lines(
        22,
        "Damaged records",
        {
            "in quarantine": total("corrupt_records"),
            "found in {{topic}}": f"sum by (topic) (increase({series('damaged_records_total')}[1h]))",
        },
        COUNT,
    ).description("Damaged records of the log: in quarantine (state corrupt), and found in the last hour, by topic."),
)

BOARD = Board(
    "router-and-queue",
    "eilpost-queue",
    "Router and queue",
    "What is in the queue, for how long, what the routers decide, and the ledger of recipients.",
    (("", _STATS), ("Queue", _QUEUE), ("Router", _ROUTER), ("Accounting", _ACCOUNTING)),
)
