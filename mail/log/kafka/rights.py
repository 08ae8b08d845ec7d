"""Rights at the brokers that a process would miss only at work: to read, to delete and to commit in transactions.

They are asked for by requests that change nothing: a fetch, DeleteRecords below offset 0, a look-up of the
coordinator. Next: `eilpost/doctor/brokers.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable

from mail.log import LogNotAuthorized, LogUnavailable
from mail.log.kafka.access import Access
from mail.log.kafka.history import ROUTER
from mail.log.kafka.lookout import Lookout
from mail.log.kafka.reading import Reader
from mail.log.topics import ACCEPTED, ALL_TOPICS, ATTEMPTED, DISPATCHED

_FETCH_SECONDS = 0.6  # longer than brokers keep a fetch of an empty partition


async def missing(access: Access, lookout: Lookout) -> list[str]:
    """A line for each right that is refused; whatever else fails is not told."""
    consumed = [access.partition(topic, 0) for topic in (ACCEPTED, ATTEMPTED, DISPATCHED)]
    questions = (
        _fetch(access),
        lookout.delete_before(dict.fromkeys(consumed, 0)),
        lookout.find_transactions(f"{access.group(ROUTER)}-0"),
    )
    return [line for question in questions if (line := await _refused(question))]


async def _fetch(access: Access) -> None:
    partitions = [access.partition(topic, 0) for topic in ALL_TOPICS]
    reader = Reader(access, partitions)
    try:
        await reader.open(dict.fromkeys(partitions))
        await reader.take(1, _FETCH_SECONDS)
    finally:
        await reader.close()


async def _refused(question: Awaitable[None]) -> str | None:
    try:
        await question
    except LogNotAuthorized as error:
        return str(error)
    except LogUnavailable:
        return None
    return None
