"""Whether the spool can take what new mail would bring: looked at every second, asked at every MAIL.

In charge of one answer, `full`; never of keeping content (`ingress/accept.py`). A message that has to wait goes to the
spool whatever its size, so a spool without room is a reason to take nothing: 452, as a full log is. One that fails is
one too, and our own trouble: 451.
"""

from __future__ import annotations

import asyncio

import structlog

from ingress import replies
from mail.reply import Reply
from mail.spool import Spool, SpoolUnavailable

logger = structlog.get_logger()

CHECK_INTERVAL_SECONDS = 1.0
CHECK_TIMEOUT_SECONDS = 5.0


class SpoolMonitor:
    """`full` says why new mail has no room, or is None."""

    def __init__(self, spool: Spool, min_free_bytes: int) -> None:
        self._spool = spool
        self._min_free_bytes = min_free_bytes
        self.reason: str | None = None
        self.refusal: Reply | None = None  # what the client is told then

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)

    async def check(self) -> None:
        reason: str | None = None
        refusal = replies.LOCAL_ERROR
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                free = await self._spool.free_bytes()
            if free is not None and free < self._min_free_bytes:
                reason, refusal = f"{free >> 20} MiB of disk are left for the spool", replies.INSUFFICIENT_STORAGE
        except SpoolUnavailable as error:
            reason = str(error)
        except TimeoutError:
            reason = f"the spool has not answered for {CHECK_TIMEOUT_SECONDS:g} s"
        if (reason is None) != (self.reason is None):
            if reason is None:
                logger.info("the spool has room again")
            else:
                logger.warning("no new mail is taken", reason=reason)
        self.reason = reason
        self.refusal = None if reason is None else refusal
