"""`eilpost trace`: the whole story of one message, read from a living log or a resting one, and written down.

It reads through the HistoryLog port and changes nothing. Colours only on a terminal; `--follow` prints each new line
as it happens and ends when the message is closed. Next: `eilpost/queueview.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from eilpost.paper import Paper
from eilpost.story import Line, State, Story, Tone, lines_from, tell, what_next
from eilpost.words import age_words, clock, names, sender_words, size_words
from mail.log import HistoryLog
from mail.message import DeliveryId, QueueId
from mail.record import Closed, Event, InHand, Waiting

_MAX_STORIES = 20
POLL = timedelta(milliseconds=300)
QUIET_LOOKS = (
    50  # at the history, before the queue is read again for what leaves no event (a turn that is still to come)
)
_STYLE = {Tone.PLAIN: "", Tone.GOOD: "green", Tone.WAIT: "yellow", Tone.BAD: "red"}


async def read(log: HistoryLog, queue_id: QueueId, *, with_bounces: bool = False) -> list[Story]:
    """A message's story, and with bounces those of the reports about it; empty when it is unknown."""
    stories: list[Story] = []
    wanted = [queue_id]
    while wanted and len(stories) < _MAX_STORIES:
        story = await _read_one(log, wanted.pop(0))
        if story is not None:
            stories.append(story)
            wanted.extend(story.bounces if with_bounces else ())
    return stories


async def _read_one(log: HistoryLog, queue_id: QueueId) -> Story | None:
    story = await _complete(log, queue_id, await _history(log, queue_id))
    if story is None:  # or the router took it from `accepted` between our two looks: now it has a history
        story = await _complete(log, queue_id, await _history(log, queue_id))
    return story


async def _complete(log: HistoryLog, queue_id: QueueId, events: Sequence[Event]) -> Story | None:
    """The story of `events`, with what is open, or waits to be read."""
    is_closed = any(isinstance(event.what, Closed) for event in events)
    open_lines = [] if is_closed else [line async for line in log.open_lines(queue_id)]
    inputs = [] if events else list(await log.waiting_inputs(queue_id))
    return tell(queue_id, events, open_lines, inputs)


async def _history(log: HistoryLog, queue_id: QueueId) -> list[Event]:
    return [event async for event in log.history(queue_id)]


def write(story: Story, paper: Paper, now: datetime) -> None:
    """Write a story: a head, the timeline, and what is next or how it ended."""
    start = _head(story, paper)
    for line in lines_from(story.events):
        _line(line, start, paper)
    _tail(story, paper, now)


async def follow(log: HistoryLog, queue_id: QueueId, paper: Paper, now: Callable[[], datetime]) -> bool:
    """Write a story as it happens, until the message is closed; False when it is unknown."""
    written = -1
    start: datetime | None = None
    waiting: tuple[tuple[DeliveryId, InHand | Waiting], ...] = ()
    quiet = 0  # looks in a row at which nothing had happened
    while True:
        events = await _history(log, queue_id)
        if written > 0 and len(events) == written and quiet < QUIET_LOOKS:
            quiet += 1
            await asyncio.sleep(POLL.total_seconds())
            continue
        quiet = 0
        story = await _complete(log, queue_id, events) or await _read_one(log, queue_id)
        if story is None:
            return False
        if written < 0:
            start = _head(story, paper)
            written = 0
        for line in lines_from(story.events, written):
            _line(line, start, paper)
        written = len(story.events)
        if story.state is State.CLOSED:
            _tail(story, paper, now())
            return True
        states = tuple((pending.delivery.id, pending.state) for pending in story.open)
        if states != waiting:
            waiting = states
            _tail(story, paper, now())
        await asyncio.sleep(POLL.total_seconds())


def _head(story: Story, paper: Paper) -> datetime | None:
    paper.write((story.queue_id, "bold"))
    message = story.message
    if message is None:
        paper.write(("  the first events of this message are older than the log keeps them", "dim"))
        return story.events[0].time if story.events else None
    paper.write(("  from   ", "dim"), (sender_words(message), ""))
    paper.write(("  to     ", "dim"), (names([each.original for each in message.envelope.recipients], 10), ""))
    paper.write(("  size   ", "dim"), (f"{size_words(message.size_bytes)}, our Received line included", ""))
    paper.write()
    return message.received


def _line(line: Line, start: datetime | None, paper: Paper) -> None:
    time = line.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    delta = f"+{age_words(line.time - start)}" if start is not None and line.time > start else ""
    paper.write(
        (f"  {time} ", "dim"),
        (f"{delta:>14}  ", "cyan"),
        (f"{line.delivery:<4}", "dim"),
        (f"{line.verb:<10} ", _STYLE[line.tone] or "bold"),
        (line.text, ""),
    )


def _tail(story: Story, paper: Paper, now: datetime) -> None:
    if story.events:
        paper.write()
    if story.state is State.CLOSED:
        taken = story.events[-1].time - story.message.received if story.message and story.events else None
        paper.write((f"  closed{f' after {age_words(taken)}' if taken is not None else ''}", "bold"))
    else:
        state = "accepted, not routed yet" if story.state is State.ACCEPTED else story.state
        paper.write((f"  {state}, now {clock(now)}", "bold"))
        for line in what_next(story, now):
            paper.write((f"  {line.delivery:<4}", "dim"), (f"{line.verb:<6}", "yellow"), (line.text, ""))
    for bounce in story.bounces:
        paper.write((f"  the report: eilpost trace {bounce}", "dim"))
    paper.write()
