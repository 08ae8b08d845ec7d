"""Damaged records of a shard: their bytes go into quarantine, and their deliveries are deferred or restored.

Nothing here ends the shard: all other mail continues. The decisions are in `router/quarantine.py`; this module asks the
log what it still has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import structlog
from msgspec.structs import replace

from mail.log import Damaged, Entry, FoundDispatch, Input, RouterShard
from mail.log.topics import ATTEMPTED
from mail.message import Content, DeliveryId, Inline
from mail.record import Active, Event, QueueEntry, Record, is_corrupt
from mail.telemetry.log import DAMAGED_RECORDS
from router.mail_queue import MailQueue
from router.quarantine import NEVER_DUE, corrupt_entry, defer_lost
from router.restore import Remains, restored_entry
from router.routing_context import RoutingContext, RoutingPolicy

logger = structlog.get_logger()

RESTORED_AT_A_TIME = 500  # one scan for their dispatches, whose content is in memory meanwhile
KEPT = timedelta(days=7)  # the bytes of a record whose delivery was saved


async def quarantine_inputs(
    shard: RouterShard, queue: MailQueue, entries: Sequence[Entry[Damaged]], policy: RoutingPolicy, now: datetime
) -> list[Record]:
    """The records that follow from damaged inputs; they are applied to `queue`. Raises LogUnavailable."""
    outputs: list[Record] = []
    reports = [entry for entry in entries if entry.topic == ATTEMPTED.name]
    if reports:
        outputs += await _defer_lost_deliveries(shard, queue, reports, policy, now)
    is_complete = not any(isinstance(output, QueueEntry) and output.content is None for output in outputs)
    is_any_deferred = bool(outputs)
    for damaged in entries:
        is_saved = damaged.topic == ATTEMPTED.name and is_complete and (is_any_deferred or bool(damaged.record.key))
        outputs.append(corrupt_entry(damaged.record, shard.owns, now + KEPT if is_saved else NEVER_DUE, now))
        _report(damaged.record, restored=is_saved)
    for record in outputs:
        queue.apply(record)
    return outputs


async def repair_queue(
    shard: RouterShard, queue: MailQueue, damaged: Sequence[Damaged], context: RoutingContext, now: datetime
) -> list[Record]:
    """The records that replace damaged queue entries, and those that follow for active deliveries of which the log has
    neither a dispatch nor a report, as after a recovery of its file. (On Kafka this is not known.) They are applied to
    `queue`. Raises LogUnavailable.
    """
    outputs = await _restore_queue(shard, queue, damaged, context, now)
    undispatched = await _defer_lost_deliveries(shard, queue, (), context.policy, now)
    for record in undispatched:
        queue.apply(record)
    return outputs + undispatched


async def _defer_lost_deliveries(
    shard: RouterShard, queue: MailQueue, reports: Sequence[Entry[Damaged]], policy: RoutingPolicy, now: datetime
) -> list[Record]:
    active = [entry.delivery.id for entry in queue.entries() if isinstance(entry.state, Active)]
    outputs: list[Record] = []
    lost_ids = await shard.lost_deliveries(active, reports) if active else ()
    entries = [entry for delivery_id in lost_ids if (entry := queue.entry(delivery_id)) is not None]
    contents = await _find_contents(shard, entries, [entry.record for entry in reports])
    for lost in entries:
        delivery_id = lost.delivery.id
        content = contents[delivery_id]
        outputs += defer_lost(lost, content, policy, now)
        logger.warning("delivery without its dispatch and report deferred", shard=shard.number, delivery_id=delivery_id)
    return outputs


def unusable_keys(shard: RouterShard, damaged: Sequence[Damaged]) -> Sequence[bytes]:
    """The keys of damaged queue entries that no record replaces, to be removed after the commit of `repair_queue`."""
    return [record.raw_key for record in damaged if record.raw_key is not None and not _is_replaced(shard, record)]


def _is_replaced(shard: RouterShard, damaged: Damaged) -> bool:
    return not damaged.is_key_damaged and (damaged.queue_id is None or shard.owns(damaged.queue_id))


def keep_bytes(shard: RouterShard, queue: MailQueue, inputs: Sequence[Input], now: datetime) -> list[Record]:
    """As `quarantine_inputs`, after a bug in it: the bytes are kept, and nothing is done for their deliveries."""
    damaged = [entry.record for entry in inputs if isinstance(entry.record, Damaged)]
    outputs: list[Record] = [corrupt_entry(record, shard.owns, NEVER_DUE, now) for record in damaged]
    for record in damaged:
        _report(record, restored=False)
    for output in outputs:
        queue.apply(output)
    return outputs


async def _find_contents(
    shard: RouterShard, entries: Sequence[QueueEntry], reports: Sequence[Damaged]
) -> Mapping[DeliveryId, Content | None]:
    """The contents of active deliveries, most of which were in their dispatches only."""
    contents = {entry.delivery.id: entry.content or _reported_content(entry, reports) for entry in entries}
    missing = [delivery_id for delivery_id, content in contents.items() if content is None]
    if not missing:
        return contents
    found = await shard.find_dispatches(missing)
    return contents | {each.delivery.id: each.content for each, _ in found.values() if each is not None}


def _reported_content(lost: QueueEntry, reports: Sequence[Damaged]) -> Content | None:
    size = lost.delivery.message.size_bytes
    contents = [report for report in reports if report.is_content_intact]
    same_key = [report for report in contents if report.key == lost.delivery.id]
    same_size = [report for report in contents if len(report.content) == size]
    for candidates in (same_key, same_size):
        if len(candidates) == 1:
            return Inline(candidates[0].content)
    return None


async def _restore_queue(
    shard: RouterShard, queue: MailQueue, damaged: Sequence[Damaged], context: RoutingContext, now: datetime
) -> list[Record]:
    """The records that replace damaged queue entries; they are applied to `queue`."""
    outputs: list[Record] = []
    found: Mapping[DeliveryId, FoundDispatch] = {}
    for number, record in enumerate(damaged):
        if number % RESTORED_AT_A_TIME == 0:
            part = damaged[number : number + RESTORED_AT_A_TIME]
            found = await shard.find_dispatches({DeliveryId(each.key) for each in part})
        delivery_id = DeliveryId(record.key)
        dispatched, is_open = found[delivery_id]
        events: list[Event] = []
        if record.queue_id is not None:
            events = [event async for event in shard.history(record.queue_id) if not isinstance(event, Damaged)]
        restored = restored_entry(record, Remains(dispatched, is_open, events), context, now)
        known = queue.entry(delivery_id)
        is_known = known is not None and not is_corrupt(known)
        if is_known:
            restored = None  # under its intact key the log has a later entry
        is_saved = is_known or restored is not None
        corrupt = corrupt_entry(record, shard.owns, now + KEPT if is_saved else NEVER_DUE, now)
        if not is_saved and _is_replaced(shard, record):
            corrupt = replace(corrupt, delivery=replace(corrupt.delivery, id=delivery_id))
        for output in (corrupt,) if restored is None else (restored, corrupt):
            queue.apply(output)
            outputs.append(output)
        _report(record, restored=is_saved)
    return outputs


def _report(damaged: Damaged, *, restored: bool) -> None:
    DAMAGED_RECORDS.labels(damaged.topic).inc()
    logger.error("damaged record quarantined", record=damaged.position, error=damaged.reason, restored=restored)
