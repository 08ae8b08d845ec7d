"""Where the content of a batch's outputs lies: what waits goes to the spool, and what would be copied too often.

In charge of asking the spool, all of a batch in one flush, and of what happens when it cannot: what waits then keeps
its content inside its queue line, up to a bound, and goes to the spool when it is next written down, or rides in its
`Dispatched` when its turn comes. So a full disk costs memory and space in the log, and holds up nobody else's mail.
A spool that failed is left alone for a while. Next: `router/shard.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from mail.message import Inline, Spooled
from mail.record import Dispatched, Pending, Record
from mail.spool import Spool, SpoolUnavailable
from router.mailqueue import MailQueue

log = structlog.get_logger()

COPIES_BYTES = 8 << 20  # that one commit may hold of contents it holds already
INLINE_BYTES = 64 << 20  # in the queue lines of one shard, and of copies in one commit, while the spool fails
PATIENCE_SECONDS = 5.0
PAUSE_SECONDS = 5.0


class Bodies:
    """Of one shard."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._asked_again_at = 0.0

    async def settle(self, outputs: list[Record], queue: MailQueue) -> None:
        """Replace content that may not stay in its record, in `outputs` and in the queue. Raises SpoolUnavailable when
        too much of it has nowhere to go.
        """
        waiting: list[tuple[int, Pending, bytes]] = []
        for place, record in enumerate(outputs):
            if isinstance(record, Pending) and isinstance(record.content, Inline):
                waiting.append((place, record, record.content.data))
        too_many = _too_many(outputs)
        contents = {id(data): data for _, _, data in [*waiting, *too_many]}
        if not contents:
            return
        try:
            kept = await self._keep(contents)
        except SpoolUnavailable as error:
            copies = sum(len(data) for _, _, data in too_many)
            if max(queue.inline_bytes, copies) > INLINE_BYTES:
                raise
            log.warning("content stays in the queue", deliveries=len(waiting), reason=str(error))
            return
        for place, dispatched, data in too_many:
            outputs[place] = replace(dispatched, content=kept[id(data)])
        for place, line, data in waiting:
            lean = replace(line, content=kept[id(data)])
            queue.apply(lean)
            outputs[place] = lean

    async def _keep(self, contents: Mapping[int, bytes]) -> dict[int, Spooled]:
        clock = asyncio.get_running_loop().time
        if clock() < self._asked_again_at:
            raise SpoolUnavailable("the spool failed a moment ago")
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                answers = await asyncio.gather(*map(self._spool.keep, contents.values()), return_exceptions=True)
        except TimeoutError:
            self._asked_again_at = clock() + PAUSE_SECONDS
            raise SpoolUnavailable(f"the spool has not answered for {PATIENCE_SECONDS:g} s") from None
        kept: dict[int, Spooled] = {}
        for number, answer in zip(contents, answers, strict=True):
            if isinstance(answer, BaseException):
                self._asked_again_at = clock() + PAUSE_SECONDS
                if isinstance(answer, SpoolUnavailable):
                    raise answer
                log.error("spool failed", exc_info=answer)  # a bug of its, no bug of the message's
                raise SpoolUnavailable(repr(answer))
            kept[number] = answer
        return kept


def _too_many(outputs: Sequence[Record]) -> list[tuple[int, Dispatched, bytes]]:
    """What would ride in too many records at once: a letter to many sites."""
    riding: dict[int, list[tuple[int, Dispatched, bytes]]] = {}  # by identity: a message's deliveries share theirs
    for place, record in enumerate(outputs):
        if isinstance(record, Dispatched) and isinstance(record.content, Inline):
            riding.setdefault(id(record.content.data), []).append((place, record, record.content.data))
    too_many: list[tuple[int, Dispatched, bytes]] = []
    room = COPIES_BYTES
    for riders in riding.values():
        copies = (len(riders) - 1) * len(riders[0][2])
        if copies > room:
            too_many += riders
        else:
            room -= copies
    return too_many
