"""Whether the spool can take what new mail would bring: looked at every second, asked at every MAIL.

In charge of one answer, `full`; never of keeping content (`ingress/accept.py`). A message that has to wait goes to the
spool whatever its size, so a spool without room is a reason to take nothing: 452, as a full log is. One that fails is
one too, and our own trouble: 451. Next: `ingress/accept.py`.
"""

from __future__ import annotations

import asyncio

import structlog

from ingress import replies
from mail.reply import Reply
from mail.spool import Spool, SpoolUnavailable

log = structlog.get_logger()

LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 5.0


class Storeroom:
    """`full` says why new mail has no room, or is None."""

    def __init__(self, spool: Spool, min_free_bytes: int) -> None:
        self._spool = spool
        self._min_free_bytes = min_free_bytes
        self.full: str | None = None
        self.refusal: Reply | None = None  # what the client is told then

    async def watch(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        full: str | None = None
        refusal = replies.OUR_FAULT
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                free = await self._spool.free_bytes()
            if free is not None and free < self._min_free_bytes:
                full, refusal = f"{free >> 20} MiB of disk are left for the spool", replies.NO_ROOM
        except SpoolUnavailable as error:
            full = str(error)
        except TimeoutError:
            full = f"the spool has not answered for {PATIENCE_SECONDS:g} s"
        if (full is None) != (self.full is None):
            if full is None:
                log.info("the spool has room again")
            else:
                log.warning("no new mail is taken", reason=full)
        self.full = full
        self.refusal = None if full is None else refusal
