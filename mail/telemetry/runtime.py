"""Metric families of every process: build, readiness, drain, event loop, certificates, and `process_*`."""

from __future__ import annotations

from prometheus_client import ProcessCollector

from mail.telemetry.family import REGISTRY, ROLES, Component

_process = Component(*ROLES)

ProcessCollector(registry=REGISTRY)

BUILD_INFO = _process.gauge(
    "build_info",
    "A metric with a constant value of 1, labeled by the versions of eilpost and Python.",
    {"version": (), "python": ()},
    aggregation="`count by (version)`",
)
READY = _process.gauge("ready", "Whether /readyz replies 200.", aggregation="`sum`, or `min` for an alert")
DRAINING = _process.gauge("draining", "Whether the process finishes its work before it exits.")
LOG_LINES_DROPPED = _process.counter(
    "log_lines_dropped",
    "Total number of log lines that could not be written: nobody reads them, or the disk is full.",
)
LOOP_LAG = _process.histogram("event_loop_lag_seconds", "Delay of timers of the event loop, in seconds.")
LOOP_TASKS = _process.gauge(
    "event_loop_tasks", "Number of tasks of the event loop: sessions, deliveries and background work."
)
CERTIFICATE_EXPIRY = _process.gauge(
    "certificate_expiry_timestamp_seconds",
    "Unix timestamp of the expiry of the loaded certificate, in seconds. Absent if no certificate is loaded.",
    {"use": ("kafka",)},
    aggregation="`min`",
    prepared=(),
)
