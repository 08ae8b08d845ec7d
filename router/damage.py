"""Damaged records of a shard: their bytes go into quarantine, and their deliveries are deferred or restored.

Nothing here ends the shard: all other mail continues. The decisions are in `router/quarantine.py`; this module asks the
log what it still has.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from msgspec.structs import replace

from mail.log import Damaged, Entry, RouterShard
from mail.log.topics import ATTEMPTED
from mail.message import Content, DeliveryId, Inline
from mail.record import Active, Event, QueueEntry, Record
from mail.telemetry.log import DAMAGED_RECORDS
from router.mail_queue import MailQueue
from router.quarantine import NEVER_DUE, corrupt_entry, defer_lost
from router.restore import Remains, restored_entry
from router.routing_context import RoutingPolicy

logger = structlog.get_logger()

KEPT = timedelta(days=7)  # the bytes of a record whose delivery was saved


async def quarantine_inputs(
    shard: RouterShard, queue: MailQueue, entries: Sequence[Entry[Damaged]], policy: RoutingPolicy, now: datetime
) -> list[Record]:
    """The records that follow from damaged inputs; they are applied to `queue`. Raises LogUnavailable."""
    outputs: list[Record] = []
    reports = [entry for entry in entries if entry.topic == ATTEMPTED.name]
    lost: list[QueueEntry] = []
    if reports:
        active = [entry.delivery.id for entry in queue.entries() if isinstance(entry.state, Active)]
        ids = await shard.lost_deliveries(active, reports)
        lost = [entry for delivery_id in ids if (entry := queue.entry(delivery_id)) is not None]
    is_complete = True
    for queue_entry in lost:
        content = queue_entry.content or await _find_content(shard, queue_entry, [entry.record for entry in reports])
        is_complete &= content is not None
        outputs += defer_lost(queue_entry, content, policy, now)
        delivery_id = queue_entry.delivery.id
        logger.warning("delivery of a damaged record deferred", shard=shard.number, delivery_id=delivery_id)
    for damaged in entries:
        is_saved = damaged.topic == ATTEMPTED.name and is_complete and bool(lost or damaged.record.key)
        outputs.append(corrupt_entry(damaged.record, shard.owns, now + KEPT if is_saved else NEVER_DUE, now))
        _report(damaged.record, restored=is_saved)
    for record in outputs:
        queue.apply(record)
    return outputs


async def _find_content(shard: RouterShard, lost: QueueEntry, reports: Sequence[Damaged]) -> Content | None:
    """The content of an active delivery, which was in its dispatch only."""
    size = lost.delivery.message.size_bytes
    contents = [report for report in reports if report.is_content_intact]
    same_key = [report for report in contents if report.key == lost.delivery.id]
    same_size = [report for report in contents if len(report.content) == size]
    for candidates in (same_key, same_size):
        if len(candidates) == 1:
            return Inline(candidates[0].content)
    dispatched, _ = await shard.find_dispatch(lost.delivery.id)
    return None if dispatched is None else dispatched.content


async def restore_queue(
    shard: RouterShard, queue: MailQueue, damaged: Sequence[Damaged], now: datetime
) -> list[Record]:
    """The records that replace damaged queue entries; they are applied to `queue`. Raises LogUnavailable."""
    outputs: list[Record] = []
    for record in damaged:
        delivery_id = DeliveryId(record.key)
        dispatched, is_open = await shard.find_dispatch(delivery_id)
        events: list[Event] = []
        if record.queue_id is not None:
            events = [event async for event in shard.history(record.queue_id) if not isinstance(event, Damaged)]
        restored = restored_entry(record, Remains(dispatched, is_open, events), now)
        corrupt = corrupt_entry(record, shard.owns, NEVER_DUE if restored is None else now + KEPT, now)
        if restored is None:  # it replaces the damaged entry
            delivery = replace(corrupt.delivery, id=DeliveryId(record.key))
            corrupt = replace(corrupt, delivery=delivery)
        else:
            outputs.append(restored)
        outputs.append(corrupt)
        _report(record, restored=restored is not None)
    for output in outputs:
        queue.apply(output)
    return outputs


def _report(damaged: Damaged, *, restored: bool) -> None:
    DAMAGED_RECORDS.labels(damaged.topic).inc()
    logger.error("damaged record quarantined", record=damaged.position, error=damaged.reason, restored=restored)
