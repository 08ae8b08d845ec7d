"""Metric families of the router and its queue."""

from __future__ import annotations

from mail.telemetry.family import QUEUE_SECONDS, Component

_router = Component("router")

KINDS = ("mailbox", "relay", "mx", "unresolved", "failed")
STATES = ("active", "deferred", "throttled", "held", "unresolved", "corrupt")
ENTRIES = ("accepted", "expanded", "merged", "delivered", "failed", "discarded")
_STATES_TEXT = (
    "active (dispatched), deferred (waits for its retry time), throttled (its site or the shard has reached a limit), "
    "held (quarantined), unresolved (DNS has not answered), corrupt (damaged records of the log, without recipients)"
)

ROUTED_RECIPIENTS = _router.counter(
    "routed_recipients",
    "Total number of routed recipients by kind of route. failed: the router refused the recipient.",
    {"kind": KINDS},
)
ROUTED_MESSAGES = _router.counter("routed_messages", "Total number of accepted messages that were routed.")
ROUTED_BYTES = _router.counter("routed_bytes", "Total size of the accepted messages that were routed, in bytes.")
ROUTE_DURATION = _router.histogram(
    "route_duration_seconds", "Duration of one batch (look-ups, decisions and commit), in seconds."
)
QUEUE_RECIPIENTS = _router.gauge(
    "queue_recipients", f"Number of recipients in the queue by state: {_STATES_TEXT}.", {"state": STATES}
)
QUEUE_OLDEST = _router.gauge(
    "queue_oldest_timestamp_seconds",
    "Unix timestamp of the reception of the oldest message in each state, in seconds. 0 if there is none.",
    {"state": STATES},
    aggregation="`min(... > 0)`",
)
RUNNABLE_RECIPIENTS = _router.gauge(
    "queue_runnable_recipients",
    "Number of recipients that are active, throttled, or deferred with a retry time in the past.",
)
OLDEST_RUNNABLE = _router.gauge(
    "queue_oldest_runnable_timestamp_seconds",
    "Unix timestamp from which the oldest runnable delivery has been runnable, in seconds. 0 if there is none.",
    aggregation="`min(... > 0)`",
)
SHARDS_ROUTED = _router.gauge(
    "shards_routed",
    "Number of owned shards of which this process finished a batch in the last 60 s. An idle shard finishes an empty "
    "batch each second.",
)
FIRST_ATTEMPT_DELAY = _router.histogram(
    "first_attempt_delay_seconds",
    "Time from the acceptance of a message to the start of the first attempt of each delivery, in seconds.",
    buckets=QUEUE_SECONDS,
)
TIME_IN_QUEUE = _router.histogram(
    "time_in_queue_seconds",
    "Time from the acceptance of a message to the end of each delivery in seconds, by result.",
    {"result": ("delivered", "failed")},
    buckets=QUEUE_SECONDS,
)
DSNS = _router.counter(
    "dsns", "Total number of delivery status notifications sent, by action (RFC 3464).", {"action": ("failed",)}
)
# The ledger: accepted + expanded - merged - delivered - failed - discarded = recipients in the queue, at every commit.
LEDGER = _router.counter(
    "ledger_recipients",
    "Total number of recipients by accounting entry: accepted, expanded (added by aliases), merged (two addresses of "
    "one mailbox), delivered, failed, discarded (failed, and no DSN is sent: the reverse-path is null, or the limit of "
    "reports about recipients behind an alias without owner is reached).",
    {"entry": ENTRIES},
)
LEDGER_DRIFT = _router.gauge(
    "ledger_drift_recipients",
    "Number of recipients in the queue by the ledger since each owned shard was opened, minus recipients in the queue. "
    "Any value but 0 is a bug of eilpost.",
    aggregation="`sum(abs())`",
)
QUARANTINED = _router.gauge(
    "quarantined_deliveries", "Number of deliveries held because the router could not process them, a bug of eilpost."
)
CORRUPT_RECORDS = _router.gauge(
    "corrupt_records", "Number of damaged records of the log in quarantine: state corrupt in `eilpost queue`."
)
