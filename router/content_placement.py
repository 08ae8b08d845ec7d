"""Content placement: moves inline content of waiting deliveries, and content with too many copies, to the spool.

One flush serves a whole batch. While the spool fails, waiting deliveries keep their content in the queue entry, up to
`INLINE_BYTES_MAX`, so that a full disk does not stop routing; it is spooled when the entry is next written. A failed
spool is not called again for `SPOOL_BACKOFF_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog
from msgspec.structs import replace

from mail.message import Inline, Spooled
from mail.record import Dispatched, QueueEntry, Record, is_corrupt
from mail.spool import Spool, SpoolUnavailable
from router.mail_queue import MailQueue

logger = structlog.get_logger()

COPIES_BYTES_MAX = 8 << 20  # repeated copies of content in one commit
INLINE_BYTES_MAX = 64 << 20  # while the spool fails: in the queue entries of one shard, and copies in one commit
SPOOL_TIMEOUT_SECONDS = 5.0
SPOOL_BACKOFF_SECONDS = 5.0


class ContentPlacement:
    """Content placement of one shard."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._retry_at = 0.0

    async def offload(self, outputs: list[Record], queue: MailQueue) -> None:
        """Replace inline content by spooled content, in `outputs` and in the queue. Raises SpoolUnavailable if the
        spool fails and the content exceeds `INLINE_BYTES_MAX`.
        """
        inline_entries = [
            (index, record, record.content.data)
            for index, record in enumerate(outputs)
            if isinstance(record, QueueEntry) and isinstance(record.content, Inline) and not is_corrupt(record)
        ]
        excess_copies = _excess_copies(outputs)
        contents = {id(data): data for _, _, data in [*inline_entries, *excess_copies]}
        if not contents:
            return
        try:
            spooled = await self._put_all(contents)
        except SpoolUnavailable as error:
            if max(queue.inline_bytes, sum(len(data) for _, _, data in excess_copies)) > INLINE_BYTES_MAX:
                raise
            logger.warning("content kept in queue: spool failed", deliveries=len(inline_entries), error=str(error))
            return
        for index, dispatched, data in excess_copies:
            outputs[index] = replace(dispatched, content=spooled[id(data)])
        for index, entry, data in inline_entries:
            spooled_entry = replace(entry, content=spooled[id(data)])
            queue.apply(spooled_entry)
            outputs[index] = spooled_entry

    async def _put_all(self, contents: Mapping[int, bytes]) -> dict[int, Spooled]:
        clock = asyncio.get_running_loop().time
        if clock() < self._retry_at:
            raise SpoolUnavailable("the spool failed a moment ago")
        try:
            async with asyncio.timeout(SPOOL_TIMEOUT_SECONDS):
                results = await asyncio.gather(*map(self._spool.put, contents.values()), return_exceptions=True)
        except TimeoutError:
            self._retry_at = clock() + SPOOL_BACKOFF_SECONDS
            raise SpoolUnavailable(f"the spool has not answered for {SPOOL_TIMEOUT_SECONDS:g} s") from None
        spooled: dict[int, Spooled] = {}
        for number, result in zip(contents, results, strict=True):
            if isinstance(result, BaseException):
                self._retry_at = clock() + SPOOL_BACKOFF_SECONDS
                if isinstance(result, SpoolUnavailable):
                    raise result
                logger.error("internal error in the spool", exc_info=result)
                # A bug in the spool must not quarantine the message.
                raise SpoolUnavailable(repr(result))
            spooled[number] = result
        return spooled


def _excess_copies(outputs: Sequence[Record]) -> list[tuple[int, Dispatched, bytes]]:
    """Dispatched records whose shared content exceeds `COPIES_BYTES_MAX`: a message to many sites."""
    by_content: dict[int, list[tuple[int, Dispatched, bytes]]] = {}  # by identity: deliveries of a message share it
    for index, record in enumerate(outputs):
        if isinstance(record, Dispatched) and isinstance(record.content, Inline):
            by_content.setdefault(id(record.content.data), []).append((index, record, record.content.data))
    excess_copies: list[tuple[int, Dispatched, bytes]] = []
    remaining = COPIES_BYTES_MAX
    for copies in by_content.values():
        repeated_bytes = (len(copies) - 1) * len(copies[0][2])
        if repeated_bytes > remaining:
            excess_copies += copies
        else:
            remaining -= repeated_bytes
    return excess_copies
