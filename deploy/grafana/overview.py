"""Overview dashboard: readiness, mail accepted, routed and delivered, and firing alerts. For a wall screen."""

from deploy.grafana import indicators
from deploy.grafana.board import Board
from deploy.grafana.panels import (
    ANY_IS_BAD,
    BYTES_PER_SECOND,
    COUNT,
    SECONDS,
    lines,
    number,
    number_per_second,
    value_table,
)
from deploy.grafana.promql import percentiles, rate, rate_by, total, total_by

_ALERT = 'alertname=~"Eilpost.*",namespace=~"$namespace|"'
_ALERTS = (
    f"max by (alertname, severity, alertstate, namespace, tenant) (ALERTS{{{_ALERT}}})"
    " * on (alertname, severity, namespace, tenant) group_left () "
    f"(time() - min by (alertname, severity, namespace, tenant) (ALERTS_FOR_STATE{{{_ALERT}}}))"
)

_STATS = tuple(
    panel.height(5)
    for panel in (
        indicators.not_ready(1, title="Processes not ready", expression=indicators.NOT_READY, board="eilpost-runtime"),
        number_per_second(
            2, "Accepted", rate("messages_received_total", result="accepted"), board="eilpost-ingress"
        ).description("Messages per second that ingress accepted with 250."),
        number_per_second(3, "Delivered", rate("delivered_messages_total"), board="eilpost-delivery").description(
            "Deliveries per second to mailboxes and other servers."
        ),
        indicators.oldest_runnable(4, board="eilpost-queue").description(
            "How long the oldest delivery that could be made now has been waiting. Deferred mail whose "
            "retry time has not come does not count."
        ),
        indicators.tempfailed(5, board="eilpost-ingress").description(
            "Share of what clients tried to send that was answered with 4xx."
        ),
        indicators.deferred(6, board="eilpost-delivery").description(
            "Share of the attempted recipients that were deferred."
        ),
        indicators.late_first_attempts(7, board="eilpost-queue"),
        number(8, "In the queue", total("queue_recipients"), board="eilpost-queue").description(
            "Recipients that are not delivered and not failed yet, in every state."
        ),
        indicators.ledger_drift(9, board="eilpost-queue"),
        number(10, "Stopped shards", f"{total('shards_stopped')} or vector(0)", board="eilpost-log")
        .thresholds(ANY_IS_BAD)
        .description("Shards that are not processed because a newer eilpost wrote a record."),
        indicators.quarantined(11, board="eilpost-queue"),
        number(12, "Alerts firing", f'count(ALERTS{{{_ALERT},alertstate="firing"}}) or vector(0)')
        .thresholds(ANY_IS_BAD)
        .description("Alerts of eilpost that fire in the chosen namespaces."),
    )
)

_FLOW = (
    lines(
        20,
        "Messages per second",
        {
            "received": rate("messages_received_total", result="accepted"),
            "routed": rate("routed_messages_total"),
            "delivered": rate("delivered_messages_total"),
        },
        board="eilpost-delivery",
    ).description(
        "Accepted by ingress, routed, and delivered. In the long run the three go together; a delivery has one next "
        "hop, so one message can make several."
    ),
    lines(
        21, "Queue by state", total_by("queue_recipients", "state"), COUNT, stacked=True, board="eilpost-queue"
    ).description(
        "Recipients in the queue. Deferred ones wait for their retry time; of throttled ones the site or the shard has "
        "reached a limit."
    ),
    lines(
        22,
        "Trouble per second",
        {
            "tempfail": rate("messages_received_total", result="tempfail"),
            "rejected": rate("messages_received_total", result="rejected"),
            "deferred": rate("delivery_attempts_total", result="deferred"),
            "failed": rate("delivery_attempts_total", result="failed"),
        },
        board="eilpost-delivery",
    ).description("Messages answered with 4xx or 5xx by ingress, and recipients deferred or failed by delivery."),
    lines(
        23, "Time to the first attempt", percentiles("first_attempt_delay_seconds"), SECONDS, board="eilpost-queue"
    ).description("From the acceptance of a message to the start of the first attempt of each delivery."),
    lines(
        24,
        "Bytes per second",
        {
            "received": rate("message_size_bytes_sum"),
            "routed": rate("routed_bytes_total"),
            "delivered": rate("delivered_bytes_total"),
        },
        BYTES_PER_SECOND,
    ).description("Content accepted by ingress, routed, and delivered."),
    value_table(
        25,
        "Alerts",
        {"for": (_ALERTS, "dtdurations")},
        ("alertname", "severity", "alertstate", "namespace", "tenant"),
        empty="no alert",
    )
    .span(12)
    .description(
        "Alerts of eilpost that fire, or are pending: their condition holds, but not for long enough yet. The page "
        "docs/runbooks/NAME.md says what to do."
    ),
)

_PROCESSES = (
    lines(26, "Ready processes by role", total_by("ready", "role"), COUNT, board="eilpost-runtime").description(
        "Processes that answer /readyz with 200."
    ),
    lines(27, "CPU by role", rate_by("process_cpu_seconds_total", "role"), COUNT, board="eilpost-runtime").description(
        "Processor cores in use. A process uses little more than one."
    ),
)

BOARD = Board(
    "overview",
    "eilpost-overview",
    "Overview",
    "Is mail taken, routed and delivered? Green tiles mean yes; a click leads to the board with the details.",
    (("", _STATS), ("Flow", _FLOW), ("Processes", _PROCESSES)),
)
