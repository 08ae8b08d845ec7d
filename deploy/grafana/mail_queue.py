"""Queue dashboard: the routers, open recipients, their age, and the ledger."""

from deploy.grafana.board import Board
from deploy.grafana.indicators import LATE_LEVELS, OLDEST_RUNNABLE, ledger_drift, oldest_runnable, quarantined
from deploy.grafana.panels import BYTES_PER_SECOND, COUNT, ORANGE, RED, SECONDS, SHARE, heat_map, lines, number
from deploy.grafana.promql import age, late_share, percentiles, quantile, rate, rate_by, total, total_by

_STATS = (
    number(1, "In the queue", "Recipients in the queue, in every state.", total("queue_recipients")),
    number(
        2,
        "Runnable",
        "Recipients that could be delivered now: active, throttled, and deferred whose retry time has come.",
        total("queue_runnable_recipients"),
    ),
    oldest_runnable(
        3, description="How long the oldest runnable delivery has been runnable. The alert is at 15 minutes."
    ),
    number(
        4,
        "First attempt (p99)",
        "From the acceptance of a message to the start of the first attempt.",
        quantile(0.99, "first_attempt_delay_seconds"),
        unit=SECONDS,
        thresholds=((30, ORANGE), (60, RED)),
    ),
    quarantined(5),
    ledger_drift(6),
)

_QUEUE = (
    lines(
        10,
        "Queue by state",
        "active: dispatched; deferred: waits for its retry time; throttled: its site or the shard has reached a limit; "
        "held: quarantined; unresolved: DNS has not answered.",
        total_by("queue_recipients", "state"),
        unit=COUNT,
        stacked=True,
    ),
    lines(
        11,
        "Age of the oldest message by state",
        "Time since the oldest message of each state was received, and since the oldest runnable delivery became "
        "runnable.",
        {"{{state}}": age("queue_oldest_timestamp_seconds", "state"), "runnable": OLDEST_RUNNABLE},
        unit=SECONDS,
    ),
    heat_map(
        14,
        "Time to the first attempt, distribution",
        "Deliveries per second by the time from acceptance to the start of the first attempt.",
        rate("first_attempt_delay_seconds_bucket", "le"),
    ),
    lines(
        15,
        "Late first attempts",
        "Share of the deliveries whose first attempt began more than 60 s after acceptance. Dashed: the objective "
        "(1 %), and 14.4 times that, where the alert is.",
        {"late": late_share()},
        unit=SHARE,
        limits=LATE_LEVELS,
        most=0.25,
    ),
    lines(
        16,
        "Time in the queue",
        "From the acceptance of a message to the end of each of its deliveries.",
        {
            "delivered p50": quantile(0.5, "time_in_queue_seconds", result="delivered"),
            "delivered p99": quantile(0.99, "time_in_queue_seconds", result="delivered"),
            "failed p50": quantile(0.5, "time_in_queue_seconds", result="failed"),
        },
        unit=SECONDS,
        log=True,
    ),
    lines(
        20,
        "Runnable recipients",
        "What could be delivered now: the number that the autoscaler of the delivery role looks at.",
        {"runnable": total("queue_runnable_recipients")},
        unit=COUNT,
    ),
)

_ROUTER = (
    lines(
        12,
        "Messages per second",
        "Accepted by ingress and routed. Routed below received for long: the routers are behind.",
        {"received": rate("messages_received_total", result="accepted"), "routed": rate("routed_messages_total")},
    ),
    lines(
        13,
        "Recipients routed by kind",
        "mailbox: local; relay and mx: other servers; unresolved: DNS has not answered; failed: refused by the router.",
        rate_by("routed_recipients_total", "kind"),
        stacked=True,
    ),
    lines(
        17,
        "Duration of a batch",
        "One batch of the router: look-ups, decisions and commit.",
        percentiles("route_duration_seconds"),
        unit=SECONDS,
    ),
    lines(
        21,
        "Bytes routed per second",
        "Size of the messages routed.",
        {"routed": rate("routed_bytes_total")},
        unit=BYTES_PER_SECOND,
    ),
)

_ACCOUNTING = (
    lines(
        18,
        "Ledger entries per second",
        "accepted + expanded - merged - delivered - failed - discarded is what the queue grows by.",
        rate_by("ledger_recipients_total", "entry"),
    ),
    lines(
        19,
        "DSNs and suppressed duplicates",
        "Delivery status notifications sent, and repeats that were recognised and had no effect.",
        {
            "DSN {{action}}": rate("dsns_total", "action"),
            "duplicate {{where}}": rate("duplicates_suppressed_total", "where"),
        },
    ),
)

BOARD = Board(
    "router-and-queue",
    "eilpost-queue",
    "Router and queue",
    "What is in the queue, for how long, what the routers decide, and the ledger of recipients.",
    (("", _STATS), ("Queue", _QUEUE), ("Router", _ROUTER), ("Accounting", _ACCOUNTING)),
)
