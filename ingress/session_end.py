"""Causes of the end of an SMTP session; the values are metric labels and log fields."""

from __future__ import annotations

from enum import StrEnum


class SessionEnd(StrEnum):
    QUIT = "quit"  # RFC 5321 section 4.1.1.10
    DISCONNECTED = "disconnected"  # the client closed the connection
    TIMEOUT = "timeout"
    SLOW = "slow"  # message data arrived too slowly while the memory budget was used up
    REJECTED = "rejected"  # 421 at the greeting or at MAIL
    TOO_MANY_ERRORS = "too_many_errors"  # the client sent too many invalid commands
    NOT_SMTP = "not_smtp"  # the session began with an HTTP request line
    INTERNAL_ERROR = "internal_error"  # an internal exception while message data was read
    SHUTDOWN = "shutdown"  # the server drained, and no message was in progress
    ABORTED = "aborted"  # the drain time-out expired
