"""Metric families of every process: build, readiness, drain, event loop, certificates, and `process_*`."""

from __future__ import annotations

from prometheus_client import ProcessCollector

from mail.telemetry.family import REGISTRY, ROLES, Component

_process = Component(*ROLES)

ProcessCollector(registry=REGISTRY)

BUILD_INFO = _process.gauge(
    "build_info",
    "Version of eilpost and of Python as labels; the value is always 1.",
    {"version": (), "python": ()},
    aggregation="`count by (version)`",
)
READY = _process.gauge("ready", "1 when /readyz answers 200, else 0.", aggregation="`sum`, or `min` for an alert")
DRAINING = _process.gauge(
    "draining", "1 while the process finishes its work before it exits, else 0.", aggregation="`sum`"
)
LOOP_LAG = _process.histogram(
    "event_loop_lag_seconds", "Delay between the time a timer was due and the time the event loop ran it."
)
CERTIFICATE_EXPIRY = _process.gauge(
    "certificate_expiry_timestamp_seconds",
    "Expiry of the loaded certificate, in seconds since 1970. Absent when no certificate is loaded.",
    {"use": ("kafka",)},
    aggregation="`min`",
    prepared=(),
)
