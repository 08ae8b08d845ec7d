"""Checks of access rights that are otherwise first needed in operation: read, delete, transactional commit.

The requests change nothing: a fetch, DeleteRecords below offset 0, FindCoordinator.
"""

from __future__ import annotations

from collections.abc import Awaitable

from mail.log import LogNotAuthorized, LogUnavailable
from mail.log.kafka.access import Access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.partition_reader import PartitionReader
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.topics import ROUTER


async def missing_rights(access: Access, cluster_info: ClusterInfo) -> list[str]:
    """A text for each refused right; other failures are ignored."""
    consumed = [access.partition(topic, 0) for topic in access.topics.consumed]
    requests = (
        _fetch(access),
        cluster_info.delete_records(dict.fromkeys(consumed, 0)),
        cluster_info.find_transaction_coordinator(f"{access.group(ROUTER)}-0"),
    )
    return [refusal for request in requests if (refusal := await _refusal(request))]


async def _fetch(access: Access) -> None:
    partitions = [access.partition(topic, 0) for topic in access.topics.all]
    reader = PartitionReader(access, partitions)
    try:
        await reader.open(dict.fromkeys(partitions))
        await reader.read(1, TIMEOUTS.rights_fetch_seconds)
    finally:
        await reader.close()


async def _refusal(request: Awaitable[None]) -> str | None:
    try:
        await request
    except LogUnavailable as error:
        return str(error) if isinstance(error, LogNotAuthorized) else None
    return None
