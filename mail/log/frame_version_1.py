"""Headers of frames of version 1, rewritten to the arrays of version 2 (`mail/frame_struct.py`). Pure.

In version 1, records, deliveries, messages and recipients were objects with short keys, times were microseconds since
1970, and some tags had other names. Malformed input raises KeyError, IndexError, TypeError, ValueError, AttributeError
or OverflowError. Such frames were written before the release of 0.1.0.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CAUSES = {"retry": "deferred", "window": "throttled", "hold": "held", "resolving": "unresolved"}


def upgrade(header: dict[str, Any]) -> list[Any]:
    """The version 2 header of a version 1 header."""
    match header["k"]:
        case "accepted":
            return ["accepted", _message(header["m"]), _content(header)]
        case "dispatched":
            return ["dispatched", _delivery(header["d"]), header["n"], _content(header)]
        case "attempted":
            started, duration = _instant(header["t"]), _duration(header["u"])
            content = _content(header) if "c" in header else None
            return ["attempted", header["d"], header["n"], header["o"], started, duration, content]
        case "pending":
            content = _content(header) if "c" in header else None
            state, last, last_remote = _state(header["s"]), header.get("l"), header.get("h")
            return ["queue_entry", _delivery(header["d"]), state, content, header["n"], last, last_remote]
        case "event":
            return ["event", header["q"], _instant(header["t"]), _event_detail(header["w"])]
        case kind:
            raise ValueError(f"record {kind!r}")


def _instant(microseconds: int) -> datetime:
    return _EPOCH + _duration(microseconds)


def _duration(microseconds: int) -> timedelta:
    return timedelta(microseconds=microseconds)


def _content(header: dict[str, Any]) -> list[Any]:
    content = header.get("c", 1)  # 1: inline
    return ["inline", b""] if content == 1 else ["spooled", *content]


def _delivery(delivery: dict[str, Any]) -> list[Any]:
    return [delivery["i"], _message(delivery["m"]), delivery["r"]]


def _message(message: dict[str, Any]) -> list[Any]:
    get = message.get
    recipients = [[rcpt["a"], rcpt.get("o"), rcpt.get("n"), rcpt.get("p")] for rcpt in message["to"]]
    envelope = [get("f"), recipients, get("b", "7BIT"), "u" in message, get("ret"), get("envid")]
    return [message["q"], message["t"], _instant(message["r"]), envelope, message["s"], get("c")]


def _state(state: list[Any]) -> list[Any]:
    match state:
        case ["hand", since]:
            return ["active", _instant(since)]
        case [cause, due, reason]:
            return ["waiting", _instant(due), _CAUSES[cause], reason]
        case _:
            raise ValueError(f"state {state!r}")


def _event_detail(detail: list[Any]) -> list[Any]:
    match detail:
        case ["took", message]:
            return ["received", _message(message)]
        case ["routed", delivery_id, route, recipients, waiting]:
            return ["routed", delivery_id, route, recipients, None if waiting is None else _state(waiting)]
        case ["tried", delivery_id, number, outcomes, started, duration, next_due]:
            times = _instant(started), _duration(duration), None if next_due is None else _instant(next_due)
            return ["attempt", delivery_id, number, outcomes, *times]
        case ["refused", outcomes]:
            return ["failed", outcomes]
        case ["bounced", recipients, None]:
            return ["discarded", recipients]
        case _:  # unchanged
            return detail
