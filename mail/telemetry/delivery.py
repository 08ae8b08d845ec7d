"""Metric families of delivery: attempts by transport and provider, connections, throttling."""

from __future__ import annotations

from itertools import product

from mail.telemetry.family import ATTEMPT_SECONDS, Component

_delivery = Component("delivery")

TRANSPORTS = ("mailbox", "smtp", "lmtp")
LOCAL, OTHER = "local", "other"
WELL_KNOWN = (
    *("google", "microsoft", "yahoo", "apple", "proton", "gmx", "fastmail", "zoho", "yandex", "mailru"),
    *("tencent", "netease", "comcast", "ionos", "orange", "telekom", "proofpoint", "mimecast", "amazon", "sendgrid"),
)
PROVIDERS = (*WELL_KNOWN, OTHER, LOCAL)
RESULTS = ("delivered", "deferred", "failed")
# The subjects of RFC 3463 section 3; a code with another subject counts as X.0.
STATUSES = tuple(f"{cls}.{subject}" for cls, subject in product("45", "01234567"))

_PAIRS = (("mailbox", LOCAL), *product(("smtp", "lmtp"), (*WELL_KNOWN, OTHER)))
_COMMON_PAIRS = (("mailbox", LOCAL), ("smtp", OTHER), ("lmtp", OTHER))
_PREPARED_PAIRS = (*_COMMON_PAIRS, *product(("smtp",), WELL_KNOWN))

ATTEMPTS = _delivery.counter(
    "delivery_attempts",
    "Total number of recipients attempted by transport, provider and result. The provider is local for mailboxes, a "
    "well-known provider by the name of the MX or relay host, else other.",
    {"transport": TRANSPORTS, "provider": PROVIDERS, "result": RESULTS},
    combinations=[(*pair, result) for pair in _PAIRS for result in RESULTS],
    prepared=[(*pair, result) for pair in _PREPARED_PAIRS for result in RESULTS],
)
ATTEMPT_DURATION = _delivery.histogram(
    "delivery_attempt_duration_seconds",
    "Duration of delivery attempts by transport, in seconds.",
    {"transport": TRANSPORTS},
    buckets=ATTEMPT_SECONDS,
)
FAILURES = _delivery.counter(
    "delivery_failures",
    "Total number of recipients deferred or failed by transport, provider and class.subject of the enhanced status "
    "code (RFC 3463). The series of a well-known provider exist from its first attempt on.",
    {"transport": TRANSPORTS, "provider": PROVIDERS, "status": STATUSES},
    combinations=[(*pair, status) for pair in _PAIRS for status in STATUSES],
    prepared=[(*pair, status) for pair in _COMMON_PAIRS for status in STATUSES],
)
CONNECTION_ERRORS = _delivery.counter(
    "delivery_connection_errors",
    "Total number of failed outgoing connections by kind: timeout, refused, unreachable, greeting (none or negative).",
    {"kind": ("timeout", "refused", "unreachable", "greeting")},
)
CONNECTIONS = _delivery.gauge("delivery_connections", "Number of open outgoing connections.")
IN_FLIGHT = _delivery.gauge("delivery_in_flight", "Number of deliveries being attempted.")
DELIVERED_MESSAGES = _delivery.counter(
    "delivered_messages",
    "Total number of deliveries with at least one delivered recipient, by transport. A message with several next hops "
    "counts once per next hop.",
    {"transport": TRANSPORTS},
)
DELIVERED_BYTES = _delivery.counter(
    "delivered_bytes",
    "Total size of the deliveries that eilpost_delivered_messages_total counts, in bytes.",
    {"transport": TRANSPORTS},
)
SLOT_WAIT = _delivery.histogram(
    "delivery_slot_wait_seconds",
    "Time that deliveries waited for a slot (concurrency limits) or for a connection to their site, in seconds. Waits "
    "shorter than 1 ms are not observed.",
    buckets=(0.001, 0.005, 0.01, *ATTEMPT_SECONDS),
)
SOURCES_SUSPENDED = _delivery.gauge(
    "delivery_sources_suspended",
    "Number of suspended source addresses: they cannot be bound, or Linux connects from another address instead.",
)
