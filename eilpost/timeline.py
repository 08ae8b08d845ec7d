"""A message's history told as lines: what the events say, in an order a person can follow. Pure.

One event becomes one line, or one for each recipient whose outcome it tells. It never reads a log and never looks at a
clock: `now` is an argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    AttemptRecorded,
    Bounced,
    Closed,
    Event,
    Pending,
    Received,
    Refused,
    Resumed,
    Routed,
)
from mail.route import ToMailbox


class LineStyle(StrEnum):
    """How a line feels; the renderer picks colours by it."""

    PLAIN = "plain"
    SUCCESS = "good"
    WAITING = "wait"
    FAILURE = "bad"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the story: when, which delivery (`-1` of `QUEUEID-1`, empty for the whole message), what."""

    time: datetime
    delivery: str
    verb: str
    text: str
    style: LineStyle = LineStyle.PLAIN


class State(StrEnum):
    ACCEPTED = "accepted"  # the router has not read it yet
    IN_PROGRESS = "on its way"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class AliasExpansion:
    """What aliases made of the envelope: `names` stood for others, `recipients` came in for them (none: they were named
    already). `is_exact`: all of `recipients` came from the one name; else the history tells only the sums.
    """

    aliases: tuple[Address, ...]
    recipients: tuple[Address, ...]
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """Everything that is known of one message. `message` is None when its first event is gone (older than kept)."""

    queue_id: QueueId
    message: Message | None
    state: State
    events: tuple[Event, ...]
    pending: tuple[Pending, ...]
    bounces: tuple[QueueId, ...] = field(default=())


def build_timeline(
    queue_id: QueueId, events: Sequence[Event], open_lines: Sequence[Pending], inputs: Sequence[Accepted]
) -> Timeline | None:
    """Put the pieces together, or None when there are none."""
    if not events and not open_lines and not inputs:
        return None
    message = next((event.detail.message for event in events if isinstance(event.detail, Received)), None)
    if message is None and inputs:
        message = inputs[0].message
    if message is None and open_lines:
        message = open_lines[0].delivery.message
    if any(isinstance(event.detail, Closed) for event in events):
        state = State.CLOSED
    elif events or open_lines:
        state = State.IN_PROGRESS
    else:
        state = State.ACCEPTED
    bounces = tuple(event.detail.dsn for event in events if isinstance(event.detail, Bounced) and event.detail.dsn)
    return Timeline(queue_id, message, state, tuple(events), tuple(open_lines), bounces)


def alias_expansion(events: Sequence[Event]) -> AliasExpansion | None:
    """What aliases made of the envelope, or None. Told by the events of the router's first decision, which bear one
    time: who was named in `Took`, and who was routed or refused at once.
    """
    first = next((event for event in events if isinstance(event.detail, Received)), None)
    if first is None or not isinstance(first.detail, Received):
        return None
    originals = {each.address.key: each.original for each in first.detail.message.envelope.recipients}
    final: dict[str, Address] = {}
    owners: set[str] = set()  # whose mailbox it goes to under his own name
    for event in events:
        if event.time != first.time:
            continue
        if isinstance(event.detail, Routed):
            final |= {address.key: address for address in event.detail.recipients}
            if isinstance(event.detail.route, ToMailbox):
                owners.add(event.detail.route.owner)
        elif isinstance(event.detail, Refused):
            final |= {outcome.recipient.key: outcome.recipient for outcome in event.detail.outcomes}
    if not final:
        return None
    replaced = [address for key, address in originals.items() if key not in final]
    added = [address for key, address in final.items() if key not in originals]
    # An alias may keep a copy for the mailbox of the same name; then its name is among the recipients.
    self_aliases = [originals[key] for key in originals if key in final and key in owners] if added else []
    if not replaced and not added:
        return None
    sources = replaced + self_aliases
    return AliasExpansion(tuple(replaced or self_aliases), tuple(added), is_exact=len(sources) == 1)


def _alias_line(time: datetime, expansion: AliasExpansion) -> Line:
    recipients = format_addresses(expansion.recipients) if expansion.recipients else "recipients named already"
    doubt = "" if expansion.is_exact else " (together; the history does not say who for whom)"
    return Line(time, "", "expanded", f"{format_addresses(expansion.aliases)} -> {recipients}{doubt}")


def lines_from(events: Sequence[Event], start: int = 0) -> Iterator[Line]:
    """The lines of a history from event `start` on, and behind the first what aliases made of its recipients."""
    for event in events[start:]:
        yield from lines_of_event(event)
        if isinstance(event.detail, Received) and (expansion := alias_expansion(events)) is not None:
            yield _alias_line(event.time, expansion)


def lines_of_event(event: Event) -> tuple[Line, ...]:
    """The lines of one event."""
    time, detail = event.time, event.detail
    match detail:
        case Received(message):
            return (Line(message.received, "", "accepted", format_origin(message)),)
        case Routed(delivery, route, recipients, waits):
            to = f"{format_addresses(recipients)} -> {format_route(route)}"
            if waits is None:
                return (Line(time, delivery_suffix(delivery), "routed", to),)
            return (Line(time, delivery_suffix(delivery), "waits", f"{to}; {format_wait(waits)}", LineStyle.WAITING),)
        case Resumed(delivery, number, route):
            return (Line(time, delivery_suffix(delivery), "resumed", f"for attempt {number} to {format_route(route)}"),)
        case AttemptRecorded(delivery, number, outcomes, _started, duration, next_due):
            attempt = f"attempt {number}, {format_age(duration)}"
            lines = [_outcome_line(time, delivery_suffix(delivery), outcome, attempt) for outcome in outcomes]
            if next_due is not None:
                lines.append(
                    Line(
                        time,
                        delivery_suffix(delivery),
                        "waits",
                        f"until {format_time(next_due)} for the next attempt",
                        LineStyle.WAITING,
                    )
                )
            return tuple(lines)
        case Refused(outcomes):
            return tuple(_outcome_line(time, "", outcome, "no attempt") for outcome in outcomes)
        case Bounced(recipients, dsn):
            if dsn is None:
                text = f"no report about {format_addresses(recipients)}: the sender is <>, so there is nobody to tell"
                return (Line(time, "", "no bounce", text),)
            return (
                Line(
                    time,
                    "",
                    "bounced",
                    f"a report about {format_addresses(recipients)} is message {dsn}",
                    LineStyle.FAILURE,
                ),
            )
        case Closed():
            return (Line(time, "", "closed", "nothing is left to do"),)
        case _:
            assert_never(detail)


def _outcome_line(time: datetime, delivery: str, outcome: Outcome, attempt: str) -> Line:
    reply = f"{outcome.remote} said {outcome.reply}" if outcome.remote else str(outcome.reply)
    text = f"{outcome.recipient} ({attempt}): {reply}"
    match outcome:
        case Delivered():
            return Line(time, delivery, "delivered", text, LineStyle.SUCCESS)
        case Deferred():
            return Line(time, delivery, "deferred", text, LineStyle.WAITING)
        case Failed():
            return Line(time, delivery, "failed", text, LineStyle.FAILURE)
        case _:
            assert_never(outcome)


def next_steps(timeline: Timeline, now: datetime) -> tuple[Line, ...]:
    """What is still to come, one line for each open delivery; or that the router has yet to read the message."""
    if timeline.state is State.ACCEPTED:
        return (Line(now, "", "next", "the router reads it; it is durable in the log", LineStyle.WAITING),)
    lines = []
    for pending in timeline.pending:
        recipients = format_addresses([each.address for each in pending.delivery.message.envelope.recipients])
        text = f"{recipients}: {format_state(pending, now)}"
        lines.append(Line(now, delivery_suffix(pending.delivery.id), "next", text, LineStyle.WAITING))
    return tuple(lines)
