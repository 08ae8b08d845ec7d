"""Metrics and structured logs, one registry for the process.

The metric families are all here, so that their names can be checked against dashboards. Never a domain, an
address, an IP or a queue id as a label. Log lines carry `queue_id=` where there is one. Labelled children are bound
once by their users, off the hot path.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=True)

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ATTEMPT = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_QUEUE = (
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    5.0,
    30.0,
    60.0,
    300.0,
    900.0,
    3600.0,
    14400.0,
    86400.0,
    172800.0,
    432000.0,
)

BUILD_INFO = Gauge("eilpost_build_info", "Version, always 1.", ["version", "python"], registry=REGISTRY)
DRAINING = Gauge("eilpost_draining", "1 while this process finishes its work before it ends.", registry=REGISTRY)
LOOP_LAG = Histogram(
    "eilpost_event_loop_lag_seconds",
    "How late the event loop ran a timer.",
    buckets=_SHORT,
    registry=REGISTRY,
)

# ingress
SMTP_CONNECTIONS = Gauge("eilpost_smtp_connections", "Open SMTP connections.", ["listener"], registry=REGISTRY)
SMTP_SESSIONS = Counter(
    "eilpost_smtp_sessions", "SMTP sessions by how they ended.", ["listener", "end"], registry=REGISTRY
)
SMTP_REPLIES = Counter(
    "eilpost_smtp_replies",
    "Replies by verb and class (2, 3, 4, 5).",
    ["verb", "reply_class"],
    registry=REGISTRY,
)
MESSAGES_RECEIVED = Counter(
    "eilpost_messages_received",
    "Messages offered, by result (accepted, tempfail, rejected).",
    ["result"],
    registry=REGISTRY,
)
MESSAGE_SIZE = Histogram(
    "eilpost_message_size_bytes",
    "Size of accepted messages.",
    buckets=(1e3, 4e3, 16e3, 64e3, 256e3, 1e6, 4e6, 16e6, 64e6),
    registry=REGISTRY,
)
ACCEPT_DURATION = Histogram(
    "eilpost_accept_duration_seconds", "From the dot to the reply.", buckets=_SHORT, registry=REGISTRY
)
BYTES_IN_FLIGHT = Gauge(
    "eilpost_ingress_bytes_in_flight", "Content in memory that is not yet accepted.", registry=REGISTRY
)

# log, spool
PRODUCE_DURATION = Histogram(
    "eilpost_produce_duration_seconds", "From append to confirmed.", buckets=_SHORT, registry=REGISTRY
)
PRODUCE_ERRORS = Counter("eilpost_produce_errors", "Appends and commits that were not confirmed.", registry=REGISTRY)
LOG_COMMIT_RECORDS = Histogram(
    "eilpost_log_commit_requests",
    "Requests in one commit of the embedded log.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    registry=REGISTRY,
)
CONSUMER_LAG = Gauge("eilpost_consumer_lag_records", "Records not yet consumed.", ["topic"], registry=REGISTRY)
REBALANCES = Counter(
    "eilpost_consumer_rebalances", "Times the group gave this process its shards.", ["role"], registry=REGISTRY
)
SHARDS_OWNED = Gauge("eilpost_shards_owned", "Shards this process tends.", ["role"], registry=REGISTRY)
SHARDS_STOPPED = Gauge(
    "eilpost_shards_stopped", "Shards that wait for a person: a record cannot be read.", ["role"], registry=REGISTRY
)


class StoppedShards:
    """Those of this process that wait for a person, and why: counted in the metric, told in words by /readyz."""

    def __init__(self) -> None:
        self._why: dict[tuple[str, int], str] = {}

    def stop(self, role: str, shard: int, why: str) -> None:
        self._why[role, shard] = why
        self._count(role)

    def resume(self, role: str, shard: int) -> None:
        """Idempotent."""
        if self._why.pop((role, shard), None) is not None:
            self._count(role)

    def lines(self) -> Sequence[str]:
        return [f"{role}, shard {shard}: {why}" for (role, shard), why in sorted(self._why.items())]

    def _count(self, role: str) -> None:
        SHARDS_STOPPED.labels(role).set(sum(each == role for each, _ in self._why))


STOPPED_SHARDS = StoppedShards()
SPOOL_BYTES = Counter(
    "eilpost_spool_bytes", "Bytes written to and read from the spool.", ["direction"], registry=REGISTRY
)
SPOOL_ERRORS = Counter("eilpost_spool_errors", "Spool failures.", ["kind"], registry=REGISTRY)

# router
ROUTED = Counter(
    "eilpost_routed_recipients",
    "Recipients routed, by kind of route (mailbox, relay, mx, unresolved, failed).",
    ["kind"],
    registry=REGISTRY,
)
ROUTE_DURATION = Histogram(
    "eilpost_route_duration_seconds", "One batch: facts, decision, commit.", buckets=_SHORT, registry=REGISTRY
)
QUEUE_RECIPIENTS = Gauge(
    "eilpost_queue_recipients",
    "Open recipients by state (in_hand, retry, window, hold, resolving).",
    ["state"],
    registry=REGISTRY,
)
QUEUE_OLDEST = Gauge(
    "eilpost_queue_oldest_timestamp_seconds",
    "When the oldest open message of a state was received; 0: none.",
    ["state"],
    registry=REGISTRY,
)
FIRST_ATTEMPT_DELAY = Histogram(
    "eilpost_first_attempt_delay_seconds",
    "From received to the first attempt's start.",
    buckets=_QUEUE,
    registry=REGISTRY,
)
TIME_IN_QUEUE = Histogram(
    "eilpost_time_in_queue_seconds",
    "From received to settled.",
    ["result"],
    buckets=_QUEUE,
    registry=REGISTRY,
)
DSNS = Counter("eilpost_dsns", "Delivery status notifications made, by action.", ["action"], registry=REGISTRY)
DUPLICATES_SUPPRESSED = Counter(
    "eilpost_duplicates_suppressed", "Repeats recognised by their id.", ["where"], registry=REGISTRY
)
# The ledger: accepted + expanded - merged - delivered - failed - discarded = what is still queued, at every commit.
LEDGER = Counter(
    "eilpost_ledger_recipients",
    "Recipients by what became of them: accepted, expanded (growth by aliases), merged (shrinkage: two names of one "
    "mailbox), delivered, failed, discarded (a bounce that bounced).",
    ["entry"],
    registry=REGISTRY,
)

# delivery
ATTEMPTS = Counter(
    "eilpost_delivery_attempts",
    "Recipients tried, by transport and result.",
    ["transport", "result"],
    registry=REGISTRY,
)
ATTEMPT_DURATION = Histogram(
    "eilpost_delivery_attempt_duration_seconds",
    "One attempt.",
    ["transport"],
    buckets=_ATTEMPT,
    registry=REGISTRY,
)
FAILURES = Counter(
    "eilpost_delivery_failures",
    "Recipients deferred or failed, by the enhanced code's class.subject.",
    ["transport", "status"],
    registry=REGISTRY,
)
CONNECTION_ERRORS = Counter(
    "eilpost_delivery_connection_errors", "Connections that failed, by kind.", ["kind"], registry=REGISTRY
)
DELIVERY_CONNECTIONS = Gauge("eilpost_delivery_connections", "Open outbound connections.", registry=REGISTRY)
IN_FLIGHT = Gauge("eilpost_delivery_in_flight", "Deliveries being worked on.", registry=REGISTRY)

# mailstore
MAILBOX_APPEND = Histogram(
    "eilpost_mailbox_append_duration_seconds", "Keeping one message.", buckets=_SHORT, registry=REGISTRY
)
POP3_SESSIONS = Counter("eilpost_pop3_sessions", "POP3 sessions by how they ended.", ["end"], registry=REGISTRY)
POP3_CONNECTIONS = Gauge("eilpost_pop3_connections", "Open POP3 connections.", registry=REGISTRY)
AUTH = Counter("eilpost_auth", "Log-ins by service and result.", ["service", "result"], registry=REGISTRY)

# resolver, directory
DNS_DURATION = Histogram(
    "eilpost_dns_duration_seconds",
    "Questions that went to the network.",
    ["result"],
    buckets=_SHORT,
    registry=REGISTRY,
)
DNS_CACHE = Counter(
    "eilpost_dns_cache",
    "Questions by where the answer was (hit, joined, miss).",
    ["result"],
    registry=REGISTRY,
)
DIRECTORY_RELOADS = Counter("eilpost_directory_reloads", "Reloads by result.", ["result"], registry=REGISTRY)
