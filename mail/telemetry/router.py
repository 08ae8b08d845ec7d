"""Metric families of the router and its queue."""

from __future__ import annotations

from mail.telemetry.family import QUEUE_SECONDS, Component

_router = Component("router")

KINDS = ("mailbox", "relay", "mx", "unresolved", "failed")
STATES = ("active", "deferred", "throttled", "held", "unresolved")
ENTRIES = ("accepted", "expanded", "merged", "delivered", "failed", "discarded")
_STATES_TEXT = (
    "active (dispatched), deferred (waits for its retry time), throttled (waits for a free slot of its site), "
    "held (quarantined), unresolved (DNS has not answered)"
)

ROUTED_RECIPIENTS = _router.counter(
    "routed_recipients", "Recipients routed, by kind of route; failed: refused by the router.", {"kind": KINDS}
)
ROUTED_MESSAGES = _router.counter("routed_messages", "Accepted messages that were routed.")
ROUTED_BYTES = _router.counter("routed_bytes", "Size of the accepted messages that were routed.")
ROUTE_DURATION = _router.histogram("route_duration_seconds", "Duration of one batch: look-ups, decisions and commit.")
QUEUE_RECIPIENTS = _router.gauge(
    "queue_recipients",
    f"Recipients in the queue by state: {_STATES_TEXT}.",
    {"state": STATES},
    aggregation="`sum`",
)
QUEUE_OLDEST = _router.gauge(
    "queue_oldest_timestamp_seconds",
    "Time at which the oldest message in each state was received, in seconds since 1970; 0: none.",
    {"state": STATES},
    aggregation="`min(... > 0)`",
)
RUNNABLE_RECIPIENTS = _router.gauge(
    "queue_runnable_recipients",
    "Recipients that could be delivered now: active, throttled, and deferred whose retry time has come.",
    aggregation="`sum`",
)
OLDEST_RUNNABLE = _router.gauge(
    "queue_oldest_runnable_timestamp_seconds",
    "Time since which the oldest runnable delivery has been runnable, in seconds since 1970; 0: none.",
    aggregation="`min(... > 0)`",
)
SHARDS_ROUTED = _router.gauge(
    "shards_routed",
    "Owned shards of which this process finished a batch in the last 60 s. An idle shard finishes an empty one each "
    "second.",
    aggregation="`sum`",
)
FIRST_ATTEMPT_DELAY = _router.histogram(
    "first_attempt_delay_seconds",
    "Time from the acceptance of a message to the start of the first attempt of each of its deliveries.",
    buckets=QUEUE_SECONDS,
)
TIME_IN_QUEUE = _router.histogram(
    "time_in_queue_seconds",
    "Time from the acceptance of a message to the end of each of its deliveries, by result.",
    {"result": ("delivered", "failed")},
    buckets=QUEUE_SECONDS,
)
DSNS = _router.counter("dsns", "Delivery status notifications sent, by action (RFC 3464).", {"action": ("failed",)})
# The ledger: accepted + expanded - merged - delivered - failed - discarded = recipients in the queue, at every commit.
LEDGER = _router.counter(
    "ledger_recipients",
    "Recipients by accounting entry: accepted, expanded (added by aliases), merged (removed, because two addresses "
    "are one mailbox), delivered, failed, discarded (a failed DSN).",
    {"entry": ENTRIES},
)
LEDGER_DRIFT = _router.gauge(
    "ledger_drift_recipients",
    "Recipients in the queue according to the ledger since each owned shard was opened, minus recipients in the "
    "queue. Not 0: a bug of eilpost.",
    aggregation="`sum(abs())`",
)
QUARANTINED = _router.gauge(
    "quarantined_deliveries",
    "Held deliveries that the router could not process because of a bug of eilpost.",
    aggregation="`sum`",
)
