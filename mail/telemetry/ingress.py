"""Metric families of the SMTP server."""

from __future__ import annotations

from mail.telemetry.family import Component

_ingress = Component("ingress")

VERBS = ("DATA", "EHLO", "EXPN", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET", "VRFY")
_STAGES = ("CONTENT", "CONNECT", "OTHER")
_ENDS = (
    *("quit", "disconnected", "timeout", "slow", "rejected", "too_many_errors"),
    *("unauth_pipelining", "not_smtp", "internal_error", "shutdown", "aborted"),
)

SMTP_CONNECTIONS = _ingress.gauge(
    "smtp_connections", "Number of open SMTP connections by listener: mx.", {"listener": ()}
)
SMTP_STRESS = _ingress.gauge(
    "smtp_stress",
    "1 while clients outside ingress.relay_networks hold nearly all connections that they may have, and have shorter "
    "time-outs and error limits; else 0.",
)
SMTP_SESSIONS = _ingress.counter(
    "smtp_sessions",
    "Total number of ended SMTP sessions by listener (mx) and cause: quit, disconnected (by the client), timeout, slow "
    "(message data too slow while memory is short), rejected (421), too_many_errors (of the client), "
    "unauth_pipelining (commands sent ahead without permission), not_smtp (an HTTP request), internal_error, shutdown "
    "(between messages), aborted (shutdown during a message).",
    {"listener": (), "end": _ENDS},
)
SMTP_REPLIES = _ingress.counter(
    "smtp_replies",
    "Total number of SMTP replies by command and first digit of the reply code. CONTENT is the reply to the message "
    "data, CONNECT the greeting, OTHER any other command.",
    {"verb": (*VERBS, *_STAGES), "reply_class": ("2", "3", "4", "5")},
)
MESSAGES_RECEIVED = _ingress.counter(
    "messages_received",
    "Total number of received messages by result: accepted (250), rejected (5xx to the message data), tempfail (4xx to "
    "the message data, or to a command before it while the log or disk is full, the log is down or memory is short).",
    {"result": ("accepted", "tempfail", "rejected")},
)
MESSAGE_SIZE = _ingress.histogram(
    "message_size_bytes",
    "Size of accepted messages as received, without the Received field of eilpost, in bytes.",
    buckets=(1e3, 4e3, 16e3, 64e3, 256e3, 1e6, 4e6, 16e6, 64e6),
)
ACCEPT_DURATION = _ingress.histogram(
    "accept_duration_seconds", "Time from the end of the message data to the reply that accepts it, in seconds."
)
IN_FLIGHT_BYTES = _ingress.gauge(
    "ingress_in_flight_bytes",
    "Message data in memory that is not accepted yet, in bytes. ingress.max_in_flight_bytes limits it.",
)


def prepare_listener(name: str) -> None:
    """Create the children of a listener."""
    SMTP_CONNECTIONS.labels(name)
    for end in _ENDS:
        SMTP_SESSIONS.labels(name, end)
