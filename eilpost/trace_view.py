"""`eilpost trace`: reads the history of one message through the HistoryLog port and prints it.

`follow` prints new events until the message is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache

from eilpost.format import format_addresses, format_age, format_bytes, format_sender, format_time
from eilpost.output import Output
from eilpost.terminal import print_message
from eilpost.timeline import Line, State, Timeline, build_timeline, lines_from, next_steps
from mail.log import Damaged, HistoryLog
from mail.message import DeliveryId, QueueId
from mail.record import Active, Closed, Event, Waiting

_MAX_TIMELINES = 20
POLL = timedelta(milliseconds=300)
IDLE_POLLS = 50  # polls of the history before the queue is read again: a throttled delivery writes no event


async def load_timelines(log: HistoryLog, queue_id: QueueId, *, with_bounces: bool = False) -> list[Timeline]:
    """The timeline of a message, and with bounces those of its DSNs; empty for an unknown message."""
    timelines: list[Timeline] = []
    queue_ids = [queue_id]
    while queue_ids and len(timelines) < _MAX_TIMELINES:
        timeline = await _load_timeline(log, queue_ids.pop(0))
        if timeline is not None:
            timelines.append(timeline)
            queue_ids.extend(timeline.bounces if with_bounces else ())
    return timelines


async def _load_timeline(log: HistoryLog, queue_id: QueueId) -> Timeline | None:
    timeline = await _build_timeline(log, queue_id, await _history(log, queue_id))
    if timeline is None:  # unknown, or routed between the two reads
        timeline = await _build_timeline(log, queue_id, await _history(log, queue_id))
    return timeline


async def _build_timeline(log: HistoryLog, queue_id: QueueId, events: Sequence[Event]) -> Timeline | None:
    """The timeline of `events`, with open deliveries, or the unrouted message."""
    is_closed = any(isinstance(event.detail, Closed) for event in events)
    open_entries = [] if is_closed else [entry async for entry in log.queue_entries(queue_id)]
    inputs = [] if events else list(await log.unrouted_messages(queue_id))
    return build_timeline(queue_id, events, open_entries, inputs)


async def _history(log: HistoryLog, queue_id: QueueId) -> list[Event]:
    """The events that can be read."""
    events = [event async for event in log.history(queue_id)]
    readable = [event for event in events if not isinstance(event, Damaged)]
    if len(readable) < len(events):
        _report(f"{queue_id}: {len(events) - len(readable)} damaged events are left out")
    return readable


@cache  # `follow` reads the history again and again
def _report(text: str) -> None:
    print_message(text)


def write(timeline: Timeline, output: Output, now: datetime) -> None:
    """Write the message, its events, and its open deliveries or its end."""
    start = _write_head(timeline, output)
    for line in lines_from(timeline.events):
        _write_line(line, start, output)
    _write_end(timeline, output, now)


async def follow(log: HistoryLog, queue_id: QueueId, output: Output, now: Callable[[], datetime]) -> bool:
    """Write events as they occur, until the message is closed; False for an unknown message."""
    written = -1
    start: datetime | None = None
    shown_states: tuple[tuple[DeliveryId, Active | Waiting], ...] = ()
    idle_polls = 0
    while True:
        events = await _history(log, queue_id)
        if written > 0 and len(events) == written and idle_polls < IDLE_POLLS:
            idle_polls += 1
            await asyncio.sleep(POLL.total_seconds())
            continue
        idle_polls = 0
        timeline = await _build_timeline(log, queue_id, events) or await _load_timeline(log, queue_id)
        if timeline is None:
            return False
        if written < 0:
            start = _write_head(timeline, output)
            written = 0
        for line in lines_from(timeline.events, written):
            _write_line(line, start, output)
        written = len(timeline.events)
        if timeline.state is State.CLOSED:
            _write_end(timeline, output, now())
            return True
        states = tuple((entry.delivery.id, entry.state) for entry in timeline.queue_entries)
        if states != shown_states:
            shown_states = states
            _write_end(timeline, output, now())
        await asyncio.sleep(POLL.total_seconds())


def _write_head(timeline: Timeline, output: Output) -> datetime | None:
    output.write((timeline.queue_id, "bold"))
    message = timeline.message
    if message is None:
        output.write(("  the first events of this message are older than log.events_retention", "dim"))
        return timeline.events[0].time if timeline.events else None
    recipients = format_addresses([recipient.original for recipient in message.envelope.recipients], 10)
    size = f"{format_bytes(message.size_bytes)} with our Received field"
    for label, text in (("from", format_sender(message)), ("to", recipients), ("size", size)):
        output.write((f"  {label:<7}", "dim"), (text, ""))
    output.write()
    return message.received


def _write_line(line: Line, start: datetime | None, output: Output) -> None:
    time = line.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    delta = f"+{format_age(line.time - start)}" if start is not None and line.time > start else ""
    output.write(
        (f"  {time} ", "dim"),
        (f"{delta:>14}  ", "cyan"),
        (f"{line.delivery:<4}", "dim"),
        (f"{line.verb:<10} ", line.style),
        (line.text, ""),
    )


def _write_end(timeline: Timeline, output: Output, now: datetime) -> None:
    if timeline.events:
        output.write()
    if timeline.state is State.CLOSED:
        elapsed = timeline.events[-1].time - timeline.message.received if timeline.message and timeline.events else None
        output.write((f"  closed{f' after {format_age(elapsed)}' if elapsed is not None else ''}", "bold"))
    else:
        state = "accepted, not routed yet" if timeline.state is State.ACCEPTED else timeline.state
        output.write((f"  {state}, now {format_time(now)}", "bold"))
        for line in next_steps(timeline, now):
            output.write((f"  {line.delivery:<4}", "dim"), (f"{line.verb:<6}", "yellow"), (line.text, ""))
    for bounce in timeline.bounces:
        output.write((f"  DSN: eilpost trace {bounce}", "dim"))
    output.write()
