"""Indicators of several dashboards: expressions, thresholds, panels."""

from deploy.grafana.panels import ANY_IS_BAD, ORANGE, RED, SECONDS, Panel, number, percentage, steps
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


def tempfailed(id_: int, board: str = "") -> Panel:
    return percentage(id_, "Tempfailed", TEMPFAILED, board=board).thresholds(steps((0.01, ORANGE), (0.05, RED)))


def deferred(id_: int, board: str = "") -> Panel:
    return percentage(id_, "Deferred", DEFERRED, board=board).thresholds(steps(*DEFERRED_LEVELS))


def oldest_runnable(id_: int, board: str = "") -> Panel:
    panel = number(id_, "Oldest runnable", OLDEST_RUNNABLE, SECONDS, board=board)
    return panel.thresholds(steps(*AGE_LEVELS)).decimals(0)


def late_first_attempts(id_: int, board: str = "") -> Panel:
    panel = percentage(id_, "Late first attempts", late_share(), board=board).thresholds(steps(*LATE_LEVELS))
    return panel.description(
        "Share of the deliveries whose first attempt began more than 60 s after acceptance. Objective: 1 %."
    )


def not_ready(id_: int, title: str, expression: str, board: str = "") -> Panel:
    panel = number(id_, title, expression, board=board).thresholds(ANY_IS_BAD)
    return panel.description("Targets of eilpost that do not answer, or answer /readyz with 503.")


def quarantined(id_: int, board: str = "") -> Panel:
    panel = number(id_, "Quarantined", total("quarantined_deliveries"), board=board).thresholds(ANY_IS_BAD)
    return panel.description("Deliveries that the router holds because it could not process them.")


def ledger_drift(id_: int, board: str = "") -> Panel:
    drift = f"sum(abs({series('ledger_drift_recipients')}))"
    panel = number(id_, "Ledger drift", drift, board=board).thresholds(ANY_IS_BAD)
    return panel.description("Recipients by which the ledger and the queue differ. Anything but 0 is a bug of eilpost.")
