"""Metric families of mailboxes."""

from __future__ import annotations

from mail.telemetry.family import Component

_store = Component("delivery")

MAILBOX_APPEND = _store.histogram(
    "mailbox_append_duration_seconds", "Duration of the append of a message to a mailbox, in seconds."
)
