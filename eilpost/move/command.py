"""`eilpost move`: open both endpoints and run the move until it is complete.

A run that fails because a log or the spool is unavailable is repeated. Errors for the operator are one line.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from time import perf_counter

from eilpost.move.endpoints import Endpoint, check_endpoints, require_unused, share_spool
from eilpost.move.items import ContentCopier
from eilpost.move.run import MoveRun, MoveTotals, Progress
from eilpost.wiring import make_history, make_log, make_spool
from mail.log import HistoryLog, Log, LogUnavailable, ShardLost
from mail.record import Active, WaitCause
from mail.service import ServiceError
from mail.spool import SpoolUnavailable

_TRIES = 4  # consecutive runs without progress before the command fails
_PAUSE_SECONDS = 2.0


@dataclass(slots=True)
class MoveCount:
    """What a move would transfer. `unread` is the log's backlog (on Kafka slightly too high: transaction markers)."""

    messages: int = 0
    unread: int = 0
    deliveries: int = 0
    active: int = 0
    held: int = 0
    size_bytes: int = 0


async def count(source: Endpoint, target: Endpoint) -> MoveCount:
    """Count by reading the source, which may be in use; nothing is changed."""
    check_endpoints(source, target)
    try:
        return await _count(make_history(source.process_config))
    except LogUnavailable as error:
        raise ServiceError(f"{error}; run the command again when the log is available") from None


async def _count(history: HistoryLog) -> MoveCount:
    result = MoveCount(unread=(await history.backlog()).accepted)
    counted_ids = set()
    async for queue_entry in history.queue_entries():
        message = queue_entry.delivery.message
        result.deliveries += 1
        result.active += isinstance(queue_entry.state, Active)
        result.held += not isinstance(queue_entry.state, Active) and queue_entry.state.cause is WaitCause.HELD
        if message.queue_id not in counted_ids:
            counted_ids.add(message.queue_id)
            result.size_bytes += message.size_bytes
    result.messages = len(counted_ids) + result.unread
    return result


async def move(
    source: Endpoint,
    target: Endpoint,
    *,
    history: bool,
    lost_too: bool,
    progress: Progress,
    print_message: Callable[[str], None],
) -> MoveTotals:
    """Raises SettingsError, LogUnusable, ServiceError, SpoolUnavailable."""
    check_endpoints(source, target)
    os.umask(0o077)  # created files contain mail: no access for other users
    started_at = perf_counter()
    for endpoint in (source, target):
        await require_unused(endpoint, print_message)
    async with _opened(source) as source_log, _opened(target) as target_log:
        copier = ContentCopier(
            None if share_spool(source, target) else make_spool(source.process_config),
            make_spool(target.process_config),
            target.inline_max_bytes,
            lost_too,
        )
        totals = await move_until_done(
            source_log, target_log, copier, history=history, progress=progress, print_message=print_message
        )
    return replace(totals, lost=copier.lost_count, seconds=perf_counter() - started_at)


async def move_until_done(
    source: Log,
    target: Log,
    copier: ContentCopier,
    *,
    history: bool,
    progress: Progress,
    print_message: Callable[[str], None],
) -> MoveTotals:
    """Run until complete; repeat while a log or the spool is unavailable and there is progress."""
    totals = MoveTotals()
    tries = 0
    while True:
        before = totals.deliveries + totals.unread + totals.known
        try:
            await MoveRun(source, target, copier, totals, history=history, progress=progress).run()
            return totals
        except ShardLost:
            raise ServiceError(
                "another router or delivery process joined during the move: stop it, and run the command again"
            ) from None
        except (LogUnavailable, SpoolUnavailable) as error:
            tries = 1 if totals.deliveries + totals.unread + totals.known > before else tries + 1
            if tries >= _TRIES:
                raise ServiceError(f"{error}; no mail is lost, run the command again when it is available") from None
            print_message(f"retrying: {error}")
        await asyncio.sleep(_PAUSE_SECONDS * tries)


@asynccontextmanager
async def _opened(endpoint: Endpoint) -> AsyncIterator[Log]:
    log = make_log(endpoint.process_config)
    await log.start()
    try:
        yield log
    finally:
        await log.close()
