"""Doctor check for records of a newer version, which stop their shard, and for damaged records.

It reads the first unconsumed record of each partition and the queue, for at most `_QUEUE_SECONDS`. It does not read
content and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from eilpost.doctor.finding import RIGHTS, Finding, fail, warn
from eilpost.doctor.quarantine import quarantine_finding
from eilpost.doctor.topics import of_tenant
from mail.log import Damaged, LogNotAuthorized, LogUnavailable, LogUnusable
from mail.log.kafka.access import Access
from mail.log.kafka.decode import decode_record
from mail.log.kafka.history import KafkaHistoryReader
from mail.log.topics import QUEUE
from mail.record import is_corrupt

_FIRST_SECONDS = 8.0
_QUEUE_SECONDS = 4.0  # a long queue is read in part; `eilpost queue` reads all of it

_DAMAGE_ADVICE = (
    "eilpost puts it into quarantine when it reads it (in `queue`: at the next replay), and all other mail continues",
    'check the disks of the brokers; what is lost: docs/kafka.md, "Damaged records"',
)
_ADVICE = (
    "if a newer eilpost wrote it, run that version: the shard continues by itself",
    'if that is not possible: docs/kafka.md, "A record that cannot be read"',
)


async def findings(history_reader: KafkaHistoryReader, access: Access, shards: int) -> list[Finding]:
    """A FAIL for each shard that is stopped by an unreadable record."""
    subject = f"records{of_tenant(access)}"
    result: list[Finding] = []
    try:
        async with asyncio.timeout(_FIRST_SECONDS):
            result += [finding async for finding in _first_record_findings(history_reader, access)]
        with suppress(TimeoutError):
            async with asyncio.timeout(_QUEUE_SECONDS):
                async for finding in _queue_findings(history_reader, access, shards):
                    result.append(finding)
    except TimeoutError:
        return [warn(subject, f"cannot be read within {_FIRST_SECONDS:.0f} s", "see the brokers' logs")]
    except LogNotAuthorized as error:
        return [*result, fail(subject, str(error), RIGHTS)]
    except LogUnavailable as error:
        return [*result, fail(subject, f"cannot be checked: {error}", "see the brokers' logs")]
    return result


async def _first_record_findings(history_reader: KafkaHistoryReader, access: Access) -> AsyncIterator[Finding]:
    for record in await history_reader.first_unconsumed():
        try:
            decoded = decode_record(access, record)
            if isinstance(decoded, Damaged):
                yield _damaged_finding(access, decoded)
        except LogUnusable as error:
            yield _unreadable_finding(access, record.topic, record.partition, error)


async def _queue_findings(history_reader: KafkaHistoryReader, access: Access, shards: int) -> AsyncIterator[Finding]:
    quarantined = 0
    for shard in range(shards):
        try:
            async for entry in history_reader.queue_entries_of_shard(shard):
                if isinstance(entry, Damaged):
                    yield _damaged_finding(access, entry)
                else:
                    quarantined += is_corrupt(entry)
        except LogUnusable as error:
            yield _unreadable_finding(access, access.topic(QUEUE), shard, error)
    if quarantined:
        yield quarantine_finding(quarantined)


def _damaged_finding(access: Access, damaged: Damaged) -> Finding:
    topic, text = access.prefix + damaged.topic, f"{access.prefix}{damaged.position} is damaged: {damaged.reason}"
    return fail(f"shard {damaged.shard} of {topic}", f"the record at {text}", *_DAMAGE_ADVICE)


def _unreadable_finding(access: Access, topic: str, shard: int, error: LogUnusable) -> Finding:
    return fail(f"shard {shard} of {topic}", str(error).removeprefix(f"{access.url}: "), *_ADVICE)
