"""The board for a wall and for the first look: is mail taken, routed and delivered, and does an alert fire."""

from deploy.grafana.board import Board
from deploy.grafana.panels import (
    ANY_IS_BAD,
    BYTES_PER_SECOND,
    COUNT,
    ORANGE,
    PER_SECOND,
    RED,
    SECONDS,
    SHARE,
    lines,
    number,
    rows,
)
from deploy.grafana.promql import ROLES, SELECTED, age, late_share, quantile, rate, series, share, total

_REFUSED = rate("smtp_replies_total", verb="CONNECT", reply_class="4")
_RECEIVED = rate("messages_received_total")
_ALERT = 'alertname=~"Eilpost.*",namespace=~"$namespace|"'
_ALERTS = (
    f"max by (alertname, severity, alertstate, namespace, tenant) (ALERTS{{{_ALERT}}})"
    " * on (alertname, severity, namespace, tenant) group_left () "
    f"(time() - min by (alertname, severity, namespace, tenant) (ALERTS_FOR_STATE{{{_ALERT}}}))"
)
NOT_READY = f"sum(up{{{SELECTED},{ROLES}}} * 0 + 1) - (sum({series('ready')}) or vector(0))"
TEMPFAILED = share(
    f"({rate('messages_received_total', result='tempfail')} + {_REFUSED})", f"({_RECEIVED} + {_REFUSED})"
)
DEFERRED = share(rate("delivery_attempts_total", result="deferred"), rate("delivery_attempts_total"))
OLDEST_RUNNABLE = age("queue_oldest_runnable_timestamp_seconds")
DRIFT = f"sum(abs({series('ledger_drift_recipients')}))"

_STATS = (
    number(
        1,
        "Processes not ready",
        "Targets of eilpost that do not answer, or answer /readyz with 503.",
        NOT_READY,
        thresholds=ANY_IS_BAD,
        height=5,
        board="eilpost-runtime",
    ),
    number(
        2,
        "Accepted",
        "Messages per second that ingress accepted with 250.",
        rate("messages_received_total", result="accepted"),
        unit=PER_SECOND,
        decimals=1,
        height=5,
        board="eilpost-ingress",
    ),
    number(
        3,
        "Delivered",
        "Deliveries per second to mailboxes and other servers.",
        rate("delivered_messages_total"),
        unit=PER_SECOND,
        decimals=1,
        height=5,
        board="eilpost-delivery",
    ),
    number(
        4,
        "Oldest runnable",
        "How long the oldest delivery that could be made now has been waiting. Deferred mail whose retry time has "
        "not come does not count.",
        OLDEST_RUNNABLE,
        unit=SECONDS,
        thresholds=((300, ORANGE), (900, RED)),
        decimals=0,
        height=5,
        board="eilpost-queue",
    ),
    number(
        5,
        "Tempfailed",
        "Share of what clients tried to send that was answered with 4xx.",
        TEMPFAILED,
        unit=SHARE,
        thresholds=((0.01, ORANGE), (0.05, RED)),
        decimals=1,
        height=5,
        board="eilpost-ingress",
    ),
    number(
        6,
        "Deferred",
        "Share of the attempted recipients that were deferred.",
        DEFERRED,
        unit=SHARE,
        thresholds=((0.1, ORANGE), (0.2, RED)),
        decimals=1,
        height=5,
        board="eilpost-delivery",
    ),
    number(
        7,
        "Late first attempts",
        "Share of the deliveries whose first attempt began more than 60 s after acceptance. Objective: 1 %.",
        late_share(),
        unit=SHARE,
        thresholds=((0.01, ORANGE), (0.144, RED)),
        decimals=1,
        height=5,
        board="eilpost-queue",
    ),
    number(
        8,
        "In the queue",
        "Recipients that are not delivered and not failed yet, in every state.",
        total("queue_recipients"),
        height=5,
        board="eilpost-queue",
    ),
    number(
        9,
        "Ledger drift",
        "Recipients by which the ledger and the queue differ. Anything but 0 is a bug of eilpost.",
        DRIFT,
        thresholds=ANY_IS_BAD,
        height=5,
        board="eilpost-queue",
    ),
    number(
        10,
        "Stopped shards",
        "Shards that are not processed because a record cannot be read.",
        f"{total('shards_stopped')} or vector(0)",
        thresholds=ANY_IS_BAD,
        height=5,
        board="eilpost-log",
    ),
    number(
        11,
        "Quarantined",
        "Deliveries that the router holds because it could not process them.",
        total("quarantined_deliveries"),
        thresholds=ANY_IS_BAD,
        height=5,
        board="eilpost-queue",
    ),
    number(
        12,
        "Alerts firing",
        "Alerts of eilpost that fire in the chosen namespaces.",
        f'count(ALERTS{{{_ALERT},alertstate="firing"}}) or vector(0)',
        thresholds=ANY_IS_BAD,
        height=5,
    ),
)

_FLOW = (
    lines(
        20,
        "Messages per second",
        "Accepted by ingress, routed, and delivered. In the long run the three go together; a delivery has one next "
        "hop, so one message can make several.",
        {
            "received": rate("messages_received_total", result="accepted"),
            "routed": rate("routed_messages_total"),
            "delivered": rate("delivered_messages_total"),
        },
        board="eilpost-delivery",
    ),
    lines(
        21,
        "Queue by state",
        "Recipients in the queue. Deferred ones wait for their retry time, throttled ones for a free slot of their "
        "site.",
        {"{{state}}": total("queue_recipients", "state")},
        unit=COUNT,
        stacked=True,
        board="eilpost-queue",
    ),
    lines(
        22,
        "Trouble per second",
        "Messages answered with 4xx or 5xx by ingress, and recipients deferred or failed by delivery.",
        {
            "tempfail": rate("messages_received_total", result="tempfail"),
            "rejected": rate("messages_received_total", result="rejected"),
            "deferred": rate("delivery_attempts_total", result="deferred"),
            "failed": rate("delivery_attempts_total", result="failed"),
        },
        board="eilpost-delivery",
    ),
    lines(
        23,
        "Time to the first attempt",
        "From the acceptance of a message to the start of the first attempt of each delivery.",
        {f"p{q}": quantile(q / 100, "first_attempt_delay_seconds") for q in (50, 95, 99)},
        unit=SECONDS,
        board="eilpost-queue",
    ),
    lines(
        24,
        "Bytes per second",
        "Content accepted by ingress, routed, and delivered.",
        {
            "received": rate("message_size_bytes_sum"),
            "routed": rate("routed_bytes_total"),
            "delivered": rate("delivered_bytes_total"),
        },
        unit=BYTES_PER_SECOND,
    ),
    rows(
        25,
        "Alerts",
        "Alerts of eilpost that fire, or are pending: their condition holds, but not for long enough yet. The page "
        "docs/runbooks/NAME.md says what to do.",
        {"for": (_ALERTS, "dtdurations")},
        ("alertname", "severity", "alertstate", "namespace", "tenant"),
        width=12,
        empty="no alert",
    ),
)

_PROCESSES = (
    lines(
        26,
        "Ready processes by role",
        "Processes that answer /readyz with 200.",
        {"{{role}}": total("ready", "role")},
        unit=COUNT,
        board="eilpost-runtime",
    ),
    lines(
        27,
        "CPU by role",
        "Processor cores in use. A process uses little more than one.",
        {"{{role}}": rate("process_cpu_seconds_total", "role")},
        unit=COUNT,
        board="eilpost-runtime",
    ),
)

BOARD = Board(
    "overview",
    "eilpost-overview",
    "Overview",
    "Is mail taken, routed and delivered? Green tiles mean yes; a click leads to the board with the details.",
    (
        ("", _STATS),
        ("Flow", _FLOW),
        ("Processes", _PROCESSES),
    ),
)
