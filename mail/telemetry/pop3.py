"""Metric families of the POP3 server."""

from __future__ import annotations

from mail.telemetry.family import Component

_mailstore = Component("mailstore")

POP3_SESSIONS = _mailstore.counter(
    "pop3_sessions",
    "Total number of ended POP3 sessions by cause: quit, disconnected (by the client), timeout (idle client), slow "
    "(the client does not read), rejected (connection limit), auth_failed (too many failed logins), too_many_errors "
    "(of the client), read_error (a message could not be read to its end), internal_error, shutdown.",
    {
        "end": (
            *("quit", "disconnected", "timeout", "slow", "rejected", "auth_failed", "too_many_errors"),
            *("read_error", "internal_error", "shutdown"),
        )
    },
)
POP3_CONNECTIONS = _mailstore.gauge("pop3_connections", "Number of open POP3 connections.")
POP3_RETRIEVED_MESSAGES = _mailstore.counter(
    "pop3_retrieved_messages", "Total number of messages sent completely by RETR."
)
POP3_RETRIEVED_BYTES = _mailstore.counter(
    "pop3_retrieved_bytes", "Total number of bytes of message content sent by RETR and TOP."
)
AUTH = _mailstore.counter(
    "auth",
    "Total number of logins by service and result: ok, invalid_credentials, unavailable (directory or mailbox), "
    "in_use (another session has locked the mailbox).",
    {"service": ("pop3",), "result": ("ok", "invalid_credentials", "unavailable", "in_use")},
)
