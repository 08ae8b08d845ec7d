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
    steps,
)
from deploy.grafana.promql import PROCESS, by_process, percentiles, quantile, rate, rate_by, series, share, total

_BAD_LOGINS = f"sum(rate({series('auth_total', result='~unavailable|invalid_credentials')}[$__rate_interval]))"

_STATS = (
    number(1, "Open connections", total("pop3_connections")).description("POP3 connections that are open now."),
    number_per_second(2, "Sessions", rate("pop3_sessions_total")).description("POP3 sessions that ended, per second."),
    number_per_second(3, "Messages fetched", rate("pop3_retrieved_messages_total")).description(
        "Messages that clients fetched completely, per second."
    ),
    number_per_second(4, "Messages stored", rate("mailbox_append_duration_seconds_count")).description(
        "Messages that delivery stored in mailboxes, per second."
    ),
    percentage(5, "Log-ins refused", share(_BAD_LOGINS, rate("auth_total")))
    .thresholds(steps((0.2, ORANGE), (0.5, RED)))
    .description("Share of the log-ins with a wrong password, or for which directory or mailbox were not available."),
    number(6, "Store time (p99)", quantile(0.99, "mailbox_append_duration_seconds"), SECONDS)
    .thresholds(steps((0.5, ORANGE), (2.5, RED)))
    .description("Time to store one message in a mailbox."),
)

_MAILBOXES = (
    lines(
        12,
        "Messages stored and fetched",
        {"stored": rate("mailbox_append_duration_seconds_count"), "fetched": rate("pop3_retrieved_messages_total")},
    ).description("Messages that delivery stored in mailboxes, and that clients fetched by POP3."),
    lines(
        13,
        "Bytes stored and fetched",
        {"stored": rate("delivered_bytes_total", transport="mailbox"), "fetched": rate("pop3_retrieved_bytes_total")},
        BYTES_PER_SECOND,
    ).description("Content delivered into mailboxes, and sent to POP3 clients."),
    lines(14, "Time to store a message", percentiles("mailbox_append_duration_seconds"), SECONDS).description(
        "One message into one mailbox, made durable."
    ),
    heat_map(16, "Time to store a message, distribution", "mailbox_append_duration_seconds").description(
        "Messages per second by the time to store one."
    ),
)

_POP3 = (
    lines(10, "POP3 sessions by end", {"{{end}}": f"{rate('pop3_sessions_total', 'end')} > 0"}, stacked=True)
    .span(8)
    .description(
        "quit: normal; auth_failed: too many failed logins; disconnected: by the client; rejected: connection limit."
    ),
    lines(11, "Log-ins by result", rate_by("auth_total", "result"), stacked=True)
    .span(8)
    .description(
        "invalid_credentials: user or password; unavailable: directory or mailbox; in_use: another session is open."
    ),
    lines(15, "POP3 connections by process", by_process(total("pop3_connections", PROCESS)), COUNT)
    .span(8)
    .description("A process takes at most mailstore.max_connections."),
)

BOARD = Board(
    "mailstore",
    "eilpost-mailstore",
    "Mailstore",
    "Storing messages in mailboxes, and fetching them by POP3.",
    (("", _STATS), ("Mailboxes", _MAILBOXES), ("POP3", _POP3)),
)
