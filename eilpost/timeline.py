"""Timeline of a message: its events as lines of text, one for each event or for each recipient's outcome. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from eilpost.format import (
    delivery_suffix,
    format_addresses,
    format_age,
    format_origin,
    format_route,
    format_state,
    format_time,
    format_wait,
)
from mail.address import Address
from mail.message import Message, QueueId
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import (
    Accepted,
    Bounced,
    Closed,
    DeliveryAttempted,
    Discarded,
    DiscardReason,
    Event,
    FailedByRouter,
    MessageAccepted,
    QueueEntry,
    Resumed,
    Routed,
)
from mail.route import ToMailbox

_WAITING, _FAILURE = "yellow", "red"
# The verb of an outcome, which is also its public JSON value, and the colour of its line.
OUTCOMES: Mapping[type[Outcome], tuple[str, str]] = {
    Delivered: ("delivered", "green"),
    Deferred: ("deferred", _WAITING),
    Failed: ("failed", _FAILURE),
}
_DISCARD_REASONS = {
    DiscardReason.NULL_REVERSE_PATH: "the sender is <>",
    DiscardReason.MEMBER_LIMIT: "reports about recipients behind an alias without owner are limited",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `delivery` is `-1` of `QUEUEID-1`, empty for the whole message. `style`: for `eilpost/output.py`."""

    time: datetime
    delivery: str
    verb: str
    text: str
    style: str = "bold"


class State(StrEnum):
    ACCEPTED = "accepted"  # not routed yet
    QUEUED = "queued"  # has open deliveries
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class AliasExpansion:
    """Aliases of the envelope and the recipients added for them (none: they were recipients already).

    `is_exact`: all `recipients` are targets of the one alias; else the history has only the totals.
    """

    aliases: tuple[Address, ...]
    recipients: tuple[Address, ...]
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """History and open deliveries of a message; `message` is None if its first event exceeded log.events_retention."""

    queue_id: QueueId
    message: Message | None
    state: State
    events: tuple[Event, ...]
    queue_entries: tuple[QueueEntry, ...]
    bounces: tuple[QueueId, ...] = field(default=())


def build_timeline(
    queue_id: QueueId, events: Sequence[Event], open_entries: Sequence[QueueEntry], inputs: Sequence[Accepted]
) -> Timeline | None:
    """The timeline, or None for an unknown message."""
    if not events and not open_entries and not inputs:
        return None
    messages = (
        *(event.detail.message for event in events if isinstance(event.detail, MessageAccepted)),
        *(accepted.message for accepted in inputs),
        *(entry.delivery.message for entry in open_entries),
    )
    if any(isinstance(event.detail, Closed) for event in events):
        state = State.CLOSED
    elif events or open_entries:
        state = State.QUEUED
    else:
        state = State.ACCEPTED
    bounces = tuple(event.detail.dsn for event in events if isinstance(event.detail, Bounced))
    return Timeline(queue_id, next(iter(messages), None), state, tuple(events), tuple(open_entries), bounces)


def alias_expansion(events: Sequence[Event]) -> AliasExpansion | None:
    """The alias expansion of the envelope, or None.

    It compares the recipients in `MessageAccepted` with those in the router's first decision, whose events have the
    same time.
    """
    first = next((event for event in events if isinstance(event.detail, MessageAccepted)), None)
    if first is None or not isinstance(first.detail, MessageAccepted):
        return None
    originals = {recipient.address.key: recipient.original for recipient in first.detail.message.envelope.recipients}
    final: dict[str, Address] = {}
    owners: set[str] = set()  # owners of the mailboxes among the routes
    for event in events:
        if event.time != first.time:
            continue
        if isinstance(event.detail, Routed):
            final |= {address.key: address for address in event.detail.recipients}
            if isinstance(event.detail.route, ToMailbox):
                owners.add(event.detail.route.owner)
        elif isinstance(event.detail, FailedByRouter):
            final |= {outcome.recipient.key: outcome.recipient for outcome in event.detail.outcomes}
    if not final:
        return None
    replaced = [address for key, address in originals.items() if key not in final]
    added = [address for key, address in final.items() if key not in originals]
    # An alias may have its own mailbox as a target; then its name is among the recipients.
    self_aliases = [originals[key] for key in originals if key in final and key in owners] if added else []
    if not replaced and not added:
        return None
    sources = replaced + self_aliases
    return AliasExpansion(tuple(replaced or self_aliases), tuple(added), is_exact=len(sources) == 1)


def _alias_line(time: datetime, expansion: AliasExpansion) -> Line:
    recipients = format_addresses(expansion.recipients) or "addresses that are recipients already"
    note = "" if expansion.is_exact else " (in total; the history does not record the targets of each alias)"
    return Line(time, "", "expanded", f"{format_addresses(expansion.aliases)} -> {recipients}{note}")


def lines_from(events: Sequence[Event], start: int = 0) -> Iterator[Line]:
    """The lines of a history from event `start` on; the alias expansion follows the first event."""
    for event in events[start:]:
        yield from lines_of_event(event)
        if isinstance(event.detail, MessageAccepted) and (expansion := alias_expansion(events)) is not None:
            yield _alias_line(event.time, expansion)


def event_time(event: Event) -> datetime:
    """When the event occurred: a message was accepted before the router recorded that."""
    return event.detail.message.received if isinstance(event.detail, MessageAccepted) else event.time


def lines_of_event(event: Event) -> tuple[Line, ...]:
    time, detail = event_time(event), event.detail
    match detail:
        case MessageAccepted(message):
            return (Line(time, "", "accepted", format_origin(message)),)
        case Routed(delivery, route, recipients, waits):
            to = f"{format_addresses(recipients)} -> {format_route(route)}"
            if waits is None:
                return (Line(time, delivery_suffix(delivery), "routed", to),)
            return (Line(time, delivery_suffix(delivery), "waits", f"{to}; {format_wait(waits)}", _WAITING),)
        case Resumed(delivery, number, route):
            return (Line(time, delivery_suffix(delivery), "resumed", f"for attempt {number} to {format_route(route)}"),)
        case DeliveryAttempted(delivery, number, outcomes, _started, duration, next_due, asked):
            suffix, attempt = delivery_suffix(delivery), f"attempt {number}, {format_age(duration)}"
            lines = [Line(time, suffix, "asked", f"{one.remote} (attempt {number}): {one.reply}") for one in asked]
            lines += [_outcome_line(time, suffix, outcome, attempt) for outcome in outcomes]
            if next_due is not None:
                wait = f"until {format_time(next_due)} for the next attempt"
                lines.append(Line(time, suffix, "waits", wait, _WAITING))
            return tuple(lines)
        case FailedByRouter(outcomes):
            return tuple(_outcome_line(time, "", outcome, "by the router") for outcome in outcomes)
        case Bounced(recipients, dsn):
            return (Line(time, "", "bounced", f"DSN {dsn} for {format_addresses(recipients)}", _FAILURE),)
        case Discarded(recipients, reason):
            text = f"{format_addresses(recipients)}: no DSN, because {_DISCARD_REASONS[reason]}"
            return (Line(time, "", "discarded", text),)
        case Closed():
            return (Line(time, "", "closed", "no delivery is open"),)
        case _:
            assert_never(detail)


def _outcome_line(time: datetime, delivery: str, outcome: Outcome, attempt: str) -> Line:
    reply = f"{outcome.remote} replied {outcome.reply}" if outcome.remote else str(outcome.reply)
    verb, style = OUTCOMES[type(outcome)]
    return Line(time, delivery, verb, f"{outcome.recipient} ({attempt}): {reply}", style)


def next_steps(timeline: Timeline, now: datetime) -> tuple[Line, ...]:
    """One line for each open delivery, or for the message that is not routed yet."""
    if timeline.state is State.ACCEPTED:
        return (Line(now, "", "next", "the router routes it; it is durable in the log", _WAITING),)
    lines = []
    for entry in timeline.queue_entries:
        recipients = format_addresses([recipient.address for recipient in entry.delivery.message.envelope.recipients])
        text = f"{recipients}: {format_state(entry, now)}"
        lines.append(Line(now, delivery_suffix(entry.delivery.id), "next", text, _WAITING))
    return tuple(lines)
