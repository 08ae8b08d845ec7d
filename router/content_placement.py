"""Where the content of a batch's outputs lies: what waits goes to the spool, and what would be copied too often.

In charge of asking the spool, all of a batch in one flush, and of what happens when it cannot: what waits then keeps
its content inside its queue line, up to a bound, and goes to the spool when it is next written down, or rides in its
`Dispatched` when its turn comes. So a full disk costs memory and space in the log, and holds up nobody else's mail.
A spool that failed is left alone for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from mail.message import Inline, Spooled
from mail.record import Dispatched, Pending, Record
from mail.spool import Spool, SpoolUnavailable
from router.mail_queue import MailQueue

logger = structlog.get_logger()

COPIES_BYTES_MAX = 8 << 20  # that one commit may hold of contents it holds already
INLINE_BYTES_MAX = 64 << 20  # in the queue lines of one shard, and of copies in one commit, while the spool fails
SPOOL_TIMEOUT_SECONDS = 5.0
SPOOL_BACKOFF_SECONDS = 5.0


class ContentPlacement:
    """Of one shard."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._retry_at = 0.0

    async def offload(self, outputs: list[Record], queue: MailQueue) -> None:
        """Replace content that may not stay in its record, in `outputs` and in the queue. Raises SpoolUnavailable when
        too much of it has nowhere to go.
        """
        inline_lines: list[tuple[int, Pending, bytes]] = []
        for index, record in enumerate(outputs):
            if isinstance(record, Pending) and isinstance(record.content, Inline):
                inline_lines.append((index, record, record.content.data))
        excess_copies = _excess_copies(outputs)
        contents = {id(data): data for _, _, data in [*inline_lines, *excess_copies]}
        if not contents:
            return
        try:
            spooled = await self._put_all(contents)
        except SpoolUnavailable as error:
            copies = sum(len(data) for _, _, data in excess_copies)
            if max(queue.inline_bytes, copies) > INLINE_BYTES_MAX:
                raise
            logger.warning("content stays in the queue", deliveries=len(inline_lines), reason=str(error))
            return
        for index, dispatched, data in excess_copies:
            outputs[index] = replace(dispatched, content=spooled[id(data)])
        for index, line, data in inline_lines:
            spooled_line = replace(line, content=spooled[id(data)])
            queue.apply(spooled_line)
            outputs[index] = spooled_line

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
        for number, answer in zip(contents, results, strict=True):
            if isinstance(answer, BaseException):
                self._retry_at = clock() + SPOOL_BACKOFF_SECONDS
                if isinstance(answer, SpoolUnavailable):
                    raise answer
                logger.error("spool failed", exc_info=answer)  # a bug of its, no bug of the message's
                raise SpoolUnavailable(repr(answer))
            spooled[number] = answer
        return spooled


def _excess_copies(outputs: Sequence[Record]) -> list[tuple[int, Dispatched, bytes]]:
    """What would ride in too many records at once: a letter to many sites."""
    by_content: dict[int, list[tuple[int, Dispatched, bytes]]] = {}  # by identity: a message's deliveries share theirs
    for index, record in enumerate(outputs):
        if isinstance(record, Dispatched) and isinstance(record.content, Inline):
            by_content.setdefault(id(record.content.data), []).append((index, record, record.content.data))
    excess_copies: list[tuple[int, Dispatched, bytes]] = []
    remaining = COPIES_BYTES_MAX
    for copies_of_one in by_content.values():
        copies = (len(copies_of_one) - 1) * len(copies_of_one[0][2])
        if copies > remaining:
            excess_copies += copies_of_one
        else:
            remaining -= copies
    return excess_copies
