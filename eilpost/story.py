"""A message's history told as lines: what the events say, in an order a person can follow. Pure.

One event becomes one line, or one for each recipient whose outcome it tells. It never reads a log and never looks at a
clock: `now` is an argument. Next: `eilpost/asjson.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from eilpost.words import age_words, came_from, clock, names, route_words, state_words, suffix, why_words
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
                text = f"no report about {names(recipients)}: the sender is <>, or asked for none"
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
