"""Tenant dashboard: the shared tenants and each dedicated one."""

from deploy.grafana.board import Board
from deploy.grafana.indicators import (
    AGE_LEVELS,
    DEFERRED_LEVELS,
    LATE_LEVELS,
    deferred,
    late_first_attempts,
    oldest_runnable,
)
from deploy.grafana.panels import (
    BYTES_PER_SECOND,
    COUNT,
    PER_SECOND,
    RED,
    SECONDS,
    SHARE,
    lines,
    number,
    number_per_second,
    value_table,
)
from deploy.grafana.promql import BY_ROLE, age, late_share, quantile, rate, rate_by, series, share, total, total_by

_T = "tenant"
_DEFERRED = share(rate("delivery_attempts_total", _T, result="deferred"), rate("delivery_attempts_total", _T))
_LAG = f"sum by (tenant, topic) (max by (namespace, tenant, topic) ({series('consumer_lag_records')}))"

_STATS = (
    number_per_second(1, "Routed", rate("routed_messages_total")).description(
        "Messages of the chosen tenants routed per second."
    ),
    number_per_second(2, "Delivered", rate("delivered_messages_total")).description(
        "Deliveries of the chosen tenants per second."
    ),
    number(3, "In the queue", total("queue_recipients")).description("Recipients of the chosen tenants in the queue."),
    oldest_runnable(4).description(
        "How long the oldest delivery that could be made now has been waiting. The alert is at 15 minutes."
    ),
    deferred(5).description("Share of the attempted recipients that were deferred."),
    late_first_attempts(6),
)

_TENANTS = (
    value_table(
        10,
        "Tenants",
        {
            "routed": (rate("routed_messages_total", _T), PER_SECOND),
            "delivered": (rate("delivered_messages_total", _T), PER_SECOND),
            "in the queue": (total("queue_recipients", _T), COUNT),
            "oldest runnable": (age("queue_oldest_runnable_timestamp_seconds", _T), SECONDS, AGE_LEVELS),
            "deferred": (_DEFERRED, SHARE, DEFERRED_LEVELS),
            "late": (late_share(_T), SHARE, LATE_LEVELS),
        },
        ("tenant",),
    )
    .height(5)
    .description("`shared` is all tenants that share topics and workers; a dedicated tenant has its own."),
)

_FLOW = (
    lines(11, "Messages routed", rate_by("routed_messages_total", "tenant"), stacked=True).description(
        "Per second, by tenant."
    ),
    lines(12, "Deliveries", rate_by("delivered_messages_total", "tenant"), stacked=True).description(
        "Per second, by tenant."
    ),
    lines(13, "Queue", total_by("queue_recipients", "tenant"), COUNT, stacked=True).description(
        "Recipients in the queue, by tenant."
    ),
    lines(
        14,
        "Time to the first attempt (p99)",
        {"{{tenant}}": quantile(0.99, "first_attempt_delay_seconds", _T)},
        SECONDS,
    ).description("From acceptance to the start of the first attempt, by tenant."),
    lines(15, "Deferred", {"{{tenant}}": _DEFERRED}, SHARE, limits=((0.2, RED),)).description(
        "Share of the attempted recipients that were deferred, by tenant. The alert is at 20 %."
    ),
    lines(
        16, "Bytes delivered", rate_by("delivered_bytes_total", "tenant"), BYTES_PER_SECOND, stacked=True
    ).description("Per second, by tenant."),
    lines(17, "Lag", {"{{tenant}} {{topic}}": _LAG}, COUNT).description(
        "Records not consumed yet, by tenant and topic."
    ),
    lines(
        18, "Ready processes", {"{{tenant}} {{role}}": total("ready", "tenant, role", selected=BY_ROLE)}, COUNT
    ).description("Processes that are ready, by tenant and role. Ingress and mailstore serve all tenants."),
)

BOARD = Board(
    "tenant",
    "eilpost-tenant",
    "Tenant",
    "The tenants side by side: throughput, queue, delay, deferrals, lag and processes.",
    (("", _STATS), ("Tenants", _TENANTS), ("Over time", _FLOW)),
    by_role=True,
)
