"""Metric families of the message log: produce, consume, rebalances, shards, suppressed duplicates."""

from __future__ import annotations

from mail.telemetry.family import Component

_every = Component("ingress", "router", "delivery")
_workers = Component("router", "delivery")

_ROLES = ("router", "delivery")
_TOPICS = ("accepted", "dispatched", "attempted")

PRODUCE_DURATION = _every.histogram(
    "produce_duration_seconds", "Time from an append or a transaction to its confirmation by the log."
)
PRODUCE_ERRORS = _every.counter("produce_errors", "Appends and commits that the log did not confirm.")
LOG_COMMIT_REQUESTS = _every.histogram(
    "log_commit_requests",
    "Requests written by one commit of the embedded log. Not used with Kafka.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
CONSUMER_LAG = _every.gauge(
    "consumer_lag_records",
    "Records not consumed yet, by topic, over all shards of the cluster. Every process reports the same number.",
    {"topic": _TOPICS},
    aggregation="`max`",
)
CONSUMED_RECORDS = _workers.counter(
    "consumed_records", "Records read from the log for processing, by topic.", {"topic": _TOPICS}
)
REBALANCES = _workers.counter(
    "consumer_rebalances", "Completed rebalances of the consumer group, by role.", {"role": _ROLES}
)
SHARDS_OWNED = _workers.gauge(
    "shards_owned", "Shards that this process owns, by role.", {"role": _ROLES}, aggregation="`sum`"
)
SHARDS = _workers.gauge(
    "shards",
    "Shards that a role has in all, over the whole cluster. 0: not known yet, or not by this process.",
    {"role": _ROLES},
    aggregation="`max`",
)
SHARDS_STOPPED = _workers.gauge(
    "shards_stopped",
    "Owned shards that are not processed because a record cannot be read, by role. An operator must act.",
    {"role": _ROLES},
    aggregation="`sum`",
)
# Repeats follow from at-least-once processing of the log.
DUPLICATES_SUPPRESSED = _workers.counter(
    "duplicates_suppressed",
    "Repeated records (router) and repeated deliveries to a mailbox (mailbox) that were recognised by their id and "
    "had no effect.",
    {"where": ("router", "mailbox")},
)
