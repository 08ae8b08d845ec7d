"""Mailstore dashboard: stored messages, POP3 sessions, and failed log-ins."""

from deploy.grafana.board import Board
from deploy.grafana.panels import (
    BYTES_PER_SECOND,
    COUNT,
    ORANGE,
    RED,
    SECONDS,
    heat_map,
    lines,
    number,
    number_per_second,
    percentage,
)
from deploy.grafana.promql import PROCESS, by_process, percentiles, quantile, rate, rate_by, series, share, total

_BAD_LOGINS = f"sum(rate({series('auth_total', result='~unavailable|invalid_credentials')}[$__rate_interval]))"

_STATS = (
    number(1, "Open connections", "POP3 connections that are open now.", total("pop3_connections")),
    number_per_second(2, "Sessions", "POP3 sessions that ended, per second.", rate("pop3_sessions_total")),
    number_per_second(
        3,
        "Messages fetched",
        "Messages that clients fetched completely, per second.",
        rate("pop3_retrieved_messages_total"),
    ),
    number_per_second(
        4,
        "Messages stored",
        "Messages that delivery stored in mailboxes, per second.",
        rate("mailbox_append_duration_seconds_count"),
    ),
    percentage(
        5,
        "Log-ins refused",
        "Share of the log-ins with a wrong password, or for which directory or mailbox were not available.",
        share(_BAD_LOGINS, rate("auth_total")),
        thresholds=((0.2, ORANGE), (0.5, RED)),
    ),
    number(
        6,
        "Store time (p99)",
        "Time to store one message in a mailbox.",
        quantile(0.99, "mailbox_append_duration_seconds"),
        unit=SECONDS,
        thresholds=((0.5, ORANGE), (2.5, RED)),
    ),
)

_MAILBOXES = (
    lines(
        12,
        "Messages stored and fetched",
        "Messages that delivery stored in mailboxes, and that clients fetched by POP3.",
        {"stored": rate("mailbox_append_duration_seconds_count"), "fetched": rate("pop3_retrieved_messages_total")},
    ),
    lines(
        13,
        "Bytes stored and fetched",
        "Content delivered into mailboxes, and sent to POP3 clients.",
        {"stored": rate("delivered_bytes_total", transport="mailbox"), "fetched": rate("pop3_retrieved_bytes_total")},
        unit=BYTES_PER_SECOND,
    ),
    lines(
        14,
        "Time to store a message",
        "One message into one mailbox, made durable.",
        percentiles("mailbox_append_duration_seconds"),
        unit=SECONDS,
    ),
    heat_map(
        16,
        "Time to store a message, distribution",
        "Messages per second by the time to store one.",
        rate("mailbox_append_duration_seconds_bucket", "le"),
    ),
)

_POP3 = (
    lines(
        10,
        "POP3 sessions by end",
        "quit: normal; auth_failed: too many failed logins; disconnected: by the client; rejected: connection limit.",
        {"{{end}}": f"{rate('pop3_sessions_total', 'end')} > 0"},
        stacked=True,
        width=8,
    ),
    lines(
        11,
        "Log-ins by result",
        "invalid_credentials: user or password; unavailable: directory or mailbox; in_use: another session is open.",
        rate_by("auth_total", "result"),
        stacked=True,
        width=8,
    ),
    lines(
        15,
        "POP3 connections by process",
        "A process takes at most mailstore.max_connections.",
        by_process(total("pop3_connections", PROCESS)),
        unit=COUNT,
        width=8,
    ),
)

BOARD = Board(
    "mailstore",
    "eilpost-mailstore",
    "Mailstore",
    "Storing messages in mailboxes, and fetching them by POP3.",
    (("", _STATS), ("Mailboxes", _MAILBOXES), ("POP3", _POP3)),
)
