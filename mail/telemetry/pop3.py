"""Metric families of the POP3 server."""

from __future__ import annotations

from mail.telemetry.family import Component

_mailstore = Component("mailstore")

POP3_SESSIONS = _mailstore.counter(
    "pop3_sessions",
    "Total number of ended POP3 sessions by cause: quit, denied (too many wrong passwords), error, idle (time limit), "
    "dropped (the client disconnected), slow (the client does not read), cut_off (a message could not be read to its "
    "end), shutdown, turned_away (connection limit).",
    {"end": ("quit", "denied", "error", "idle", "dropped", "slow", "cut_off", "shutdown", "turned_away")},
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
    "Total number of logins by service and result: ok, wrong (user or password), unavailable (directory or mailbox), "
    "in_use (another session has locked the mailbox).",
    {"service": ("pop3",), "result": ("ok", "wrong", "unavailable", "in_use")},
)
