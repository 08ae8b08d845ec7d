"""Indicators of several dashboards: expressions, thresholds, panels."""

from functools import partial

from deploy.grafana.panels import ANY_IS_BAD, ORANGE, RED, SECONDS, Panel, number, percentage
from deploy.grafana.promql import ROLES, SELECTED, age, late_share, rate, series, share, total

_REFUSED = rate("smtp_replies_total", verb="CONNECT", reply_class="4")

NOT_READY = f"sum(up{{{SELECTED},{ROLES}}} * 0 + 1) - (sum({series('ready')}) or vector(0))"
TEMPFAILED = share(
    f"({rate('messages_received_total', result='tempfail')} + {_REFUSED})",
    f"({rate('messages_received_total')} + {_REFUSED})",
)
DEFERRED = share(rate("delivery_attempts_total", result="deferred"), rate("delivery_attempts_total"))
OLDEST_RUNNABLE = age("queue_oldest_runnable_timestamp_seconds")

AGE_LEVELS = ((300, ORANGE), (900, RED))
DEFERRED_LEVELS = ((0.1, ORANGE), (0.2, RED))
FAILED_LEVELS = ((0.05, ORANGE), (0.2, RED))
LATE_LEVELS = ((0.01, ORANGE), (0.144, RED))

tempfailed = partial(percentage, title="Tempfailed", expression=TEMPFAILED, thresholds=((0.01, ORANGE), (0.05, RED)))
deferred = partial(percentage, title="Deferred", expression=DEFERRED, thresholds=DEFERRED_LEVELS)
oldest_runnable = partial(
    number, title="Oldest runnable", expression=OLDEST_RUNNABLE, unit=SECONDS, thresholds=AGE_LEVELS, decimals=0
)


def late_first_attempts(id_: int, board: str = "") -> Panel:
    return percentage(id_, "Late first attempts", late_share(), thresholds=LATE_LEVELS, board=board).description(
        "Share of the deliveries whose first attempt began more than 60 s after acceptance. Objective: 1 %."
    )


def not_ready(id_: int, title: str, expression: str, board: str = "") -> Panel:
    return number(id_, title, expression, thresholds=ANY_IS_BAD, board=board).description(
        "Targets of eilpost that do not answer, or answer /readyz with 503."
    )


def quarantined(id_: int, board: str = "") -> Panel:
    return number(id_, "Quarantined", total("quarantined_deliveries"), thresholds=ANY_IS_BAD, board=board).description(
        "Deliveries that the router holds because it could not process them."
    )


def ledger_drift(id_: int, board: str = "") -> Panel:
    drift = f"sum(abs({series('ledger_drift_recipients')}))"
    return number(id_, "Ledger drift", drift, thresholds=ANY_IS_BAD, board=board).description(
        "Recipients by which the ledger and the queue differ. Anything but 0 is a bug of eilpost."
    )
