"""`eilpost move` from its arguments to its summary: opens both ends, runs the move until it is through.

In charge of running again when a log did not confirm, which is what the next call of the command would do. Every fault
that a person can mend leaves as one line. Next: `mail/log/__init__.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

from eilpost.compose import make_history, make_log, make_spool
from eilpost.move.ends import End, refuse, refuse_in_use, same_spool
from eilpost.move.letters import Carrier
from eilpost.move.moving import Moving, Progress, Tally
from mail.log import HistoryLog, Log, LogUnavailable, ShardLost
from mail.record import InHand, Why
from mail.service import ServiceError
from mail.spool import SpoolUnavailable

_TRIES = 4  # runs in a row that moved nothing, before the command gives up
_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Moved:
    tally: Tally
    lost: int
    seconds: float


@dataclass(slots=True)
class Count:
    """What a move would find: `unread` as the log counts it (on Kafka a little more: its own marks are in it)."""

    messages: int = 0
    unread: int = 0
    deliveries: int = 0
    in_hand: int = 0
    held: int = 0
    size_bytes: int = 0


async def count(source: End, target: End) -> Count:
    """Read the source as `eilpost queue` does, also while it is in use; change nothing."""
    refuse(source, target)
    try:
        return await _count(make_history(source.plan))
    except LogUnavailable as error:
        raise ServiceError(f"{error}; run the command again when it answers") from None


async def _count(history: HistoryLog) -> Count:
    found = Count(unread=(await history.backlog()).accepted)
    seen = set()
    async for line in history.open_lines():
        message = line.delivery.message
        found.deliveries += 1
        found.in_hand += isinstance(line.state, InHand)
        found.held += not isinstance(line.state, InHand) and line.state.why is Why.HOLD
        if message.queue_id not in seen:
            seen.add(message.queue_id)
            found.size_bytes += message.size_bytes
    found.messages = len(seen) + found.unread
    return found


async def move(
    source: End,
    target: End,
    *,
    history: bool,
    lost_too: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> Moved:
    """Raises SettingsError, LogUnusable, ServiceError, SpoolUnavailable."""
    refuse(source, target)
    os.umask(0o077)  # people's mail: what a process makes, no other user of the machine reads
    began = perf_counter()
    for end in (source, target):
        await refuse_in_use(end, say)
    async with _opened(source) as source_log, _opened(target) as target_log:
        carrier = Carrier(
            None if same_spool(source, target) else make_spool(source.plan),
            make_spool(target.plan),
            target.inline_max_bytes,
            lost_too,
        )
        tally = await until_moved(source_log, target_log, carrier, history=history, progress=progress, say=say)
    return Moved(tally, carrier.lost, perf_counter() - began)


async def until_moved(
    source: Log,
    target: Log,
    carrier: Carrier,
    *,
    history: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> Tally:
    """Run, and run again when a log or the spool did not answer, as long as that helps."""
    tally = Tally()
    tries = 0
    while True:
        before = tally.deliveries + tally.unread + tally.known
        try:
            await Moving(source, target, carrier, tally, history=history, progress=progress).run()
            return tally
        except ShardLost:
            raise ServiceError(
                "another router or delivery process has joined while mail was moved: stop it, and run the command again"
            ) from None
        except (LogUnavailable, SpoolUnavailable) as error:
            tries = 1 if tally.deliveries + tally.unread + tally.known > before else tries + 1
            if tries >= _TRIES:
                raise ServiceError(f"{error}; nothing is lost, run the command again when it answers") from None
            say(f"trying again: {error}")
        await asyncio.sleep(_PAUSE_SECONDS * tries)


@asynccontextmanager
async def _opened(end: End) -> AsyncIterator[Log]:
    log = make_log(end.plan)
    await log.start()
    try:
        yield log
    finally:
        await log.close()
