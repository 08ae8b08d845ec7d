"""Metric families of the message log: produce, consume, rebalances, shards, suppressed duplicates."""

from __future__ import annotations

from mail.telemetry.family import Component

_every = Component("ingress", "router", "delivery")
_workers = Component("router", "delivery")

_ROLES = ("router", "delivery")
_TOPICS = ("accepted", "dispatched", "attempted")

PRODUCE_DURATION = _every.histogram(
    "produce_duration_seconds", "Time from an append or a transaction to its confirmation by the log, in seconds."
)
PRODUCE_ERRORS = _every.counter("produce_errors", "Total number of appends and commits that the log did not confirm.")
LOG_COMMIT_REQUESTS = _every.histogram(
    "log_commit_requests",
    "Number of requests written by one commit of the embedded log. Not used with Kafka.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
CONSUMER_LAG = _every.gauge(
    "consumer_lag_records",
    "Number of records not consumed yet by topic, in all shards of one tenant's topics. Every process of that tenant "
    "reports the same value.",
    {"topic": _TOPICS},
    aggregation="`max`",
)
CONSUMED_RECORDS = _workers.counter(
    "consumed_records", "Total number of records read from the log for processing, by topic.", {"topic": _TOPICS}
)
REBALANCES = _workers.counter(
    "consumer_rebalances", "Total number of completed rebalances of the consumer group by role.", {"role": _ROLES}
)
SHARDS_OWNED = _workers.gauge("shards_owned", "Number of shards that this process owns, by role.", {"role": _ROLES})
SHARDS = _workers.gauge(
    "shards",
    "Number of shards of a role in one tenant's topics. 0 if this process does not know it.",
    {"role": _ROLES},
    aggregation="`max`",
)
SHARDS_STOPPED = _workers.gauge(
    "shards_stopped",
    "Number of owned shards that are stopped because a newer eilpost wrote a record, by role. An operator must act.",
    {"role": _ROLES},
)
DAMAGED_RECORDS = _workers.counter(
    "damaged_records",
    "Total number of damaged records that were found in the log, by topic. The router puts them into quarantine.",
    {"topic": ("accepted", "queue", "dispatched", "attempted")},
)
DUPLICATES_SUPPRESSED = _workers.counter(
    "duplicates_suppressed",
    "Total number of duplicates that were recognised by their id and had no effect: records (router), deliveries to a "
    "mailbox (mailbox). At-least-once processing of the log causes them.",
    {"where": ("router", "mailbox")},
)
