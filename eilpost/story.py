"""A message's history told as lines: what the events say, in an order a person can follow. Pure.

One event becomes one line, or one for each recipient whose outcome it tells. It never reads a log and never looks at a
clock: `now` is an argument. Next: `eilpost/asjson.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from eilpost.words import age_words, came_from, clock, names, route_words, state_words, suffix, why_words
from mail.address import Address
from mail.message import Message, QueueId
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import (
    Accepted,
    Bounced,
    Closed,
    Event,
    Pending,
    Refused,
    Resumed,
    Routed,
    Took,
    Tried,
)
from mail.route import ToMailbox


class Tone(StrEnum):
    """How a line feels; the renderer picks colours by it."""

    PLAIN = "plain"
    GOOD = "good"
    WAIT = "wait"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the story: when, which delivery (`-1` of `QUEUEID-1`, empty for the whole message), what."""

    time: datetime
    delivery: str
    verb: str
    text: str
    tone: Tone = Tone.PLAIN


class State(StrEnum):
    ACCEPTED = "accepted"  # the router has not read it yet
    ON_ITS_WAY = "on its way"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Expanded:
    """What aliases made of the envelope: `names` stood for others, `recipients` came in for them (none: they were named
    already). `is_exact`: all of `recipients` came from the one name; else the history tells only the sums.
    """

    names: tuple[Address, ...]
    recipients: tuple[Address, ...]
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that is known of one message. `message` is None when its first event is gone (older than kept)."""

    queue_id: QueueId
    message: Message | None
    state: State
    events: tuple[Event, ...]
    open: tuple[Pending, ...]
    bounces: tuple[QueueId, ...] = field(default=())


def tell(
    queue_id: QueueId, events: Sequence[Event], open_lines: Sequence[Pending], inputs: Sequence[Accepted]
) -> Story | None:
    """Put the pieces together, or None when there are none."""
    if not events and not open_lines and not inputs:
        return None
    message = next((event.what.message for event in events if isinstance(event.what, Took)), None)
    if message is None and inputs:
        message = inputs[0].message
    if message is None and open_lines:
        message = open_lines[0].delivery.message
    if any(isinstance(event.what, Closed) for event in events):
        state = State.CLOSED
    elif events or open_lines:
        state = State.ON_ITS_WAY
    else:
        state = State.ACCEPTED
    bounces = tuple(event.what.dsn for event in events if isinstance(event.what, Bounced) and event.what.dsn)
    return Story(queue_id, message, state, tuple(events), tuple(open_lines), bounces)


def expanded(events: Sequence[Event]) -> Expanded | None:
    """What aliases made of the envelope, or None. Told by the events of the router's first decision, which bear one
    time: who was named in `Took`, and who was routed or refused at once.
    """
    first = next((event for event in events if isinstance(event.what, Took)), None)
    if first is None or not isinstance(first.what, Took):
        return None
    named = {each.address.key: each.original for each in first.what.message.envelope.recipients}
    finals: dict[str, Address] = {}
    owners: set[str] = set()  # whose mailbox it goes to under his own name
    for event in events:
        if event.time != first.time:
            continue
        if isinstance(event.what, Routed):
            finals |= {address.key: address for address in event.what.recipients}
            if isinstance(event.what.route, ToMailbox):
                owners.add(event.what.route.owner)
        elif isinstance(event.what, Refused):
            finals |= {outcome.recipient.key: outcome.recipient for outcome in event.what.outcomes}
    if not finals:
        return None
    gone = [address for key, address in named.items() if key not in finals]
    come = [address for key, address in finals.items() if key not in named]
    # An alias may keep a copy for the mailbox of the same name; then its name is among the recipients.
    keepers = [named[key] for key in named if key in finals and key in owners] if come else []
    if not gone and not come:
        return None
    sources = gone + keepers
    return Expanded(tuple(gone or keepers), tuple(come), is_exact=len(sources) == 1)


def _expanded_line(time: datetime, what: Expanded) -> Line:
    to = names(what.recipients) if what.recipients else "recipients named already"
    doubt = "" if what.is_exact else " (together; the history does not say who for whom)"
    return Line(time, "", "expanded", f"{names(what.names)} -> {to}{doubt}")


def lines_from(events: Sequence[Event], start: int = 0) -> Iterator[Line]:
    """The lines of a history from event `start` on, and behind the first what aliases made of its recipients."""
    for event in events[start:]:
        yield from lines_of(event)
        if isinstance(event.what, Took) and (what := expanded(events)) is not None:
            yield _expanded_line(event.time, what)


def lines_of(event: Event) -> tuple[Line, ...]:
    """The lines of one event."""
    time, what = event.time, event.what
    match what:
        case Took(message):
            return (Line(message.received, "", "accepted", came_from(message)),)
        case Routed(delivery, route, recipients, waits):
            to = f"{names(recipients)} -> {route_words(route)}"
            if waits is None:
                return (Line(time, suffix(delivery), "routed", to),)
            return (Line(time, suffix(delivery), "waits", f"{to}; {why_words(waits)}", Tone.WAIT),)
        case Resumed(delivery, number, route):
            return (Line(time, suffix(delivery), "resumed", f"for attempt {number} to {route_words(route)}"),)
        case Tried(delivery, number, outcomes, _started, duration, next_due):
            attempt = f"attempt {number}, {age_words(duration)}"
            lines = [_outcome_line(time, suffix(delivery), outcome, attempt) for outcome in outcomes]
            if next_due is not None:
                lines.append(
                    Line(time, suffix(delivery), "waits", f"until {clock(next_due)} for the next attempt", Tone.WAIT)
                )
            return tuple(lines)
        case Refused(outcomes):
            return tuple(_outcome_line(time, "", outcome, "no attempt") for outcome in outcomes)
        case Bounced(recipients, dsn):
            if dsn is None:
                text = f"no report about {names(recipients)}: the sender is <>, so there is nobody to tell"
                return (Line(time, "", "no bounce", text),)
            return (Line(time, "", "bounced", f"a report about {names(recipients)} is message {dsn}", Tone.BAD),)
        case Closed():
            return (Line(time, "", "closed", "nothing is left to do"),)
        case _:
            assert_never(what)


def _outcome_line(time: datetime, delivery: str, outcome: Outcome, attempt: str) -> Line:
    said = f"{outcome.remote} said {outcome.reply}" if outcome.remote else str(outcome.reply)
    text = f"{outcome.recipient} ({attempt}): {said}"
    match outcome:
        case Delivered():
            return Line(time, delivery, "delivered", text, Tone.GOOD)
        case Deferred():
            return Line(time, delivery, "deferred", text, Tone.WAIT)
        case Failed():
            return Line(time, delivery, "failed", text, Tone.BAD)
        case _:
            assert_never(outcome)


def what_next(story: Story, now: datetime) -> tuple[Line, ...]:
    """What is still to come, one line for each open delivery; or that the router has yet to read the message."""
    if story.state is State.ACCEPTED:
        return (Line(now, "", "next", "the router reads it; it is durable in the log", Tone.WAIT),)
    lines = []
    for pending in story.open:
        recipients = names([each.address for each in pending.delivery.message.envelope.recipients])
        text = f"{recipients}: {state_words(pending, now)}"
        lines.append(Line(now, suffix(pending.delivery.id), "next", text, Tone.WAIT))
    return tuple(lines)
