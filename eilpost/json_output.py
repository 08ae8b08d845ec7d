"""JSON of `eilpost trace` and `eilpost queue`. Pure.

Times are ISO 8601 in UTC, durations seconds, sizes bytes. Keys may be added and are never renamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, assert_never

import orjson

from eilpost.format import format_route
from eilpost.timeline import OUTCOMES, Timeline, alias_expansion, event_time
from mail.message import Message, queue_id_of
from mail.outcome import Outcome
from mail.printable import escape_json
from mail.record import (
    Bounced,
    Closed,
    DeliveryAttempted,
    Discarded,
    Event,
    EventDetail,
    FailedByRouter,
    MessageAccepted,
    QueueEntry,
    Resumed,
    Routed,
    Waiting,
    state_name,
)


def to_json(value: object) -> str:
    return escape_json(orjson.dumps(value, option=orjson.OPT_INDENT_2)).decode()


def timeline_json(timeline: Timeline, now: datetime) -> dict[str, Any]:
    message = timeline.message
    start = message.received if message else None
    return {
        "queue_id": timeline.queue_id,
        "state": str(timeline.state),
        "message": message_json(message) if message else None,
        "expanded": alias_expansion_json(timeline.events),
        "events": [event_json(event, start) for event in timeline.events],
        "open": [queue_entry_json(entry, now) for entry in timeline.queue_entries],
        "bounces": list(timeline.bounces),
    }


def alias_expansion_json(events: Sequence[Event]) -> dict[str, Any] | None:
    """The aliases of the envelope and the recipients added for them; None without aliases."""
    expansion = alias_expansion(events)
    if expansion is None:
        return None
    return {
        "names": [str(address) for address in expansion.aliases],
        "recipients": [str(address) for address in expansion.recipients],
        "exact": expansion.is_exact,
    }


def message_json(message: Message) -> dict[str, Any]:
    client = message.client
    reverse_path = message.envelope.reverse_path
    return {
        "received": message.received.isoformat(),
        "sender": str(reverse_path) if reverse_path else "",
        "recipients": [str(recipient.address) for recipient in message.envelope.recipients],
        "original_recipients": [str(recipient.original) for recipient in message.envelope.recipients],
        "size_bytes": message.size_bytes,
        "tenant": message.tenant,
        "client": {key: getattr(client, key) for key in ("ip", "port", "helo", "protocol", "user")} if client else None,
    }


# Public JSON values; independent of class names and of the stored tags.
_EVENT_NAMES: dict[type[EventDetail], str] = {
    MessageAccepted: "accepted",
    Routed: "routed",
    Resumed: "resumed",
    DeliveryAttempted: "attempted",
    FailedByRouter: "failed",
    Bounced: "bounced",
    Discarded: "discarded",
    Closed: "closed",
}


def event_name(detail: EventDetail) -> str:
    return _EVENT_NAMES[type(detail)]


def event_json(event: Event, start: datetime | None) -> dict[str, Any]:
    time, detail = event_time(event), event.detail
    head: dict[str, Any] = {"time": time.isoformat(), "event": event_name(detail)}
    if start is not None:
        head["seconds"] = round((time - start).total_seconds(), 6)
    match detail:
        case MessageAccepted() | Closed():
            return head
        case Routed(delivery, route, recipients, waits):
            return head | {
                "delivery": delivery,
                "route": format_route(route),
                "site": route.site,
                "recipients": [str(recipient) for recipient in recipients],
                "waits": {"state": state_name(waits), "due": waits.due.isoformat(), "reason": waits.reason}
                if waits
                else None,
            }
        case Resumed(delivery, number, route):
            return head | {"delivery": delivery, "attempt": number, "route": format_route(route), "site": route.site}
        case DeliveryAttempted(delivery, number, outcomes, started, duration, next_due, asked):
            return head | {
                "delivery": delivery,
                "attempt": number,
                "started": started.isoformat(),
                "duration_seconds": round(duration.total_seconds(), 6),
                "next_due": next_due.isoformat() if next_due else None,
                "outcomes": [outcome_json(outcome) for outcome in outcomes],
                "asked": [{"remote": one.remote, "reply": str(one.reply)} for one in asked],
            }
        case FailedByRouter(outcomes):
            return head | {"outcomes": [outcome_json(outcome) for outcome in outcomes]}
        case Bounced(recipients, dsn):
            return head | {"recipients": [str(recipient) for recipient in recipients], "dsn": dsn}
        case Discarded(recipients, reason):
            return head | {"recipients": [str(recipient) for recipient in recipients], "reason": reason.value}
        case _:
            assert_never(detail)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "recipient": str(outcome.recipient),
        "result": OUTCOMES[type(outcome)][0],
        "reply": str(outcome.reply),
        "status": outcome.reply.status,
        "remote": outcome.remote,
    }


def queue_entry_json(entry: QueueEntry, now: datetime) -> dict[str, Any]:
    message = entry.delivery.message
    waiting = entry.state if isinstance(entry.state, Waiting) else None
    return {
        "delivery": entry.delivery.id,
        "queue_id": queue_id_of(entry.delivery.id),
        "age_seconds": round((now - message.received).total_seconds(), 3),
        **message_json(message),
        "route": format_route(entry.delivery.route),
        "site": entry.delivery.route.site,
        "state": state_name(entry.state),
        "next_attempt": waiting.due.isoformat() if waiting and waiting.due.year < 9000 else None,
        "reason": waiting.reason if waiting else "",
        "attempts": entry.attempts,
        "last_reply": str(entry.last) if entry.last else None,
        "last_remote": entry.last_remote,
    }
