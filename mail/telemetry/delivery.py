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
_PROVIDER_TEXT = "provider: local for mailboxes, a well-known provider by the MX or relay host, else other"

ATTEMPTS = _delivery.counter(
    "delivery_attempts",
    f"Recipients tried, by transport, provider and result ({_PROVIDER_TEXT}).",
    {"transport": TRANSPORTS, "provider": PROVIDERS, "result": RESULTS},
    combinations=[(*pair, result) for pair in _PAIRS for result in RESULTS],
    prepared=[(*pair, result) for pair in _PREPARED_PAIRS for result in RESULTS],
)
ATTEMPT_DURATION = _delivery.histogram(
    "delivery_attempt_duration_seconds",
    "Duration of one attempt, by transport.",
    {"transport": TRANSPORTS},
    buckets=ATTEMPT_SECONDS,
)
FAILURES = _delivery.counter(
    "delivery_failures",
    "Recipients deferred or failed, by transport, provider and class.subject of the enhanced status code (RFC 3463). "
    "The series of a provider exist from its first attempt on.",
    {"transport": TRANSPORTS, "provider": PROVIDERS, "status": STATUSES},
    combinations=[(*pair, status) for pair in _PAIRS for status in STATUSES],
    prepared=[
        (*pair, status) for pair in (("mailbox", LOCAL), ("smtp", OTHER), ("lmtp", OTHER)) for status in STATUSES
    ],
)
CONNECTION_ERRORS = _delivery.counter(
    "delivery_connection_errors",
    "Outgoing connections that failed: timeout, refused, unreachable, greeting (no or a negative greeting).",
    {"kind": ("timeout", "refused", "unreachable", "greeting")},
)
CONNECTIONS = _delivery.gauge("delivery_connections", "Open outgoing connections.", aggregation="`sum`")
IN_FLIGHT = _delivery.gauge("delivery_in_flight", "Deliveries being attempted.", aggregation="`sum`")
DELIVERED_MESSAGES = _delivery.counter(
    "delivered_messages",
    "Deliveries of which at least one recipient was delivered, by transport. A message with several next hops counts "
    "once for each.",
    {"transport": TRANSPORTS},
)
DELIVERED_BYTES = _delivery.counter(
    "delivered_bytes", "Size of the deliveries in eilpost_delivered_messages_total.", {"transport": TRANSPORTS}
)
THROTTLE = _delivery.histogram(
    "delivery_throttle_seconds",
    "Duration of waits of deliveries for a slot (concurrency limits) or for a connection to their site (pacing). "
    "Waits shorter than 1 ms are not counted.",
    buckets=(0.001, 0.005, 0.01, *ATTEMPT_SECONDS),
)
SOURCES_SUSPENDED = _delivery.gauge(
    "delivery_sources_suspended",
    "Source addresses that are suspended: they cannot be bound, or Linux connects from another address instead.",
    aggregation="`sum`",
)
