"""Metric families of DNS and of the directory."""

from __future__ import annotations

from mail.telemetry.family import ROLES, Component

_resolver = Component("ingress", "router", "delivery")
_directory = Component(*ROLES)

DNS_DURATION = _resolver.histogram(
    "dns_duration_seconds",
    "Duration of DNS queries in seconds, by result: found, nodata, nxdomain, error (no answer or an error code). "
    "Cached answers are not observed.",
    {"result": ("found", "nodata", "nxdomain", "error")},
)
DNS_CACHE = _resolver.counter(
    "dns_cache",
    "Total number of DNS look-ups by cache result: hit, coalesced (the same query was already running), miss.",
    {"result": ("hit", "coalesced", "miss")},
)
DIRECTORY_RELOADS = _directory.counter(
    "directory_reloads", "Total number of reloads of the directory file by result.", {"result": ("loaded", "failed")}
)
DIRECTORY_LAST_RELOAD = _directory.gauge(
    "directory_last_reload_successful",
    "Whether the last reload of the directory file was successful. 0: the last good version stays in use.",
    aggregation="`min`",
)
DIRECTORY_LAST_RELOAD.set(1)
