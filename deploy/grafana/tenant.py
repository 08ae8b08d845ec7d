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
    number_per_second(1, "Routed", "Messages of the chosen tenants routed per second.", rate("routed_messages_total")),
    number_per_second(2, "Delivered", "Deliveries of the chosen tenants per second.", rate("delivered_messages_total")),
    number(3, "In the queue", "Recipients of the chosen tenants in the queue.", total("queue_recipients")),
    oldest_runnable(
        4,
        description="How long the oldest delivery that could be made now has been waiting. The alert is at 15 minutes.",
    ),
    deferred(5, description="Share of the attempted recipients that were deferred."),
    late_first_attempts(6),
)

_TENANTS = (
    value_table(
        10,
        "Tenants",
        "`shared` is all tenants that share topics and workers; a dedicated tenant has its own.",
        {
            "routed": (rate("routed_messages_total", _T), PER_SECOND),
            "delivered": (rate("delivered_messages_total", _T), PER_SECOND),
            "in the queue": (total("queue_recipients", _T), COUNT),
            "oldest runnable": (age("queue_oldest_runnable_timestamp_seconds", _T), SECONDS),
            "deferred": (_DEFERRED, SHARE),
            "late": (late_share(_T), SHARE),
        },
        ("tenant",),
        coloured={"oldest runnable": AGE_LEVELS, "deferred": DEFERRED_LEVELS, "late": LATE_LEVELS},
        height=5,
    ),
)

_FLOW = (
    lines(11, "Messages routed", "Per second, by tenant.", rate_by("routed_messages_total", "tenant"), stacked=True),
    lines(12, "Deliveries", "Per second, by tenant.", rate_by("delivered_messages_total", "tenant"), stacked=True),
    lines(
        13,
        "Queue",
        "Recipients in the queue, by tenant.",
        total_by("queue_recipients", "tenant"),
        unit=COUNT,
        stacked=True,
    ),
    lines(
        14,
        "Time to the first attempt (p99)",
        "From acceptance to the start of the first attempt, by tenant.",
        {"{{tenant}}": quantile(0.99, "first_attempt_delay_seconds", _T)},
        unit=SECONDS,
    ),
    lines(
        15,
        "Deferred",
        "Share of the attempted recipients that were deferred, by tenant. The alert is at 20 %.",
        {"{{tenant}}": _DEFERRED},
        unit=SHARE,
        limits=((0.2, RED),),
    ),
    lines(
        16,
        "Bytes delivered",
        "Per second, by tenant.",
        rate_by("delivered_bytes_total", "tenant"),
        unit=BYTES_PER_SECOND,
        stacked=True,
    ),
    lines(17, "Lag", "Records not consumed yet, by tenant and topic.", {"{{tenant}} {{topic}}": _LAG}, unit=COUNT),
    lines(
        18,
        "Ready processes",
        "Processes that are ready, by tenant and role. Ingress and mailstore serve all tenants.",
        {"{{tenant}} {{role}}": total("ready", "tenant, role", selected=BY_ROLE)},
        unit=COUNT,
    ),
)

BOARD = Board(
    "tenant",
    "eilpost-tenant",
    "Tenant",
    "The tenants side by side: throughput, queue, delay, deferrals, lag and processes.",
    (("", _STATS), ("Tenants", _TENANTS), ("Over time", _FLOW)),
    by_role=True,
)
