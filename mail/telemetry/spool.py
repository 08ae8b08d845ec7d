"""Metric families of the spool."""

from __future__ import annotations

from mail.telemetry.family import Component

_spool = Component("ingress", "router", "delivery")

SPOOL_BYTES = _spool.counter(
    "spool_bytes", "Total number of bytes written to and read from the spool.", {"direction": ("written", "read")}
)
SPOOL_ERRORS = _spool.counter(
    "spool_errors",
    "Total number of spool errors by kind: unavailable (an operation failed), damaged (content missing or changed).",
    {"kind": ("unavailable", "damaged")},
)
SPOOL_DURATION = _spool.histogram(
    "spool_duration_seconds",
    "Duration of spool operations in seconds. A write includes the wait for its group commit.",
    {"operation": ("write", "read", "sweep")},
)
WRITE_DURATION, READ_DURATION, SWEEP_DURATION = (
    SPOOL_DURATION.labels(operation) for operation in ("write", "read", "sweep")
)
