"""Periodic check whether the spool can store new messages; the result is read at every MAIL.

A message that has to wait goes to the spool whatever its size, so new mail is refused with 452 when a spool in a
directory is full and with 451 when it fails. A spool in an object store is not checked.
"""

from __future__ import annotations

import asyncio

import structlog

from ingress import replies
from mail.reply import Reply
from mail.spool import Spool, SpoolUnavailable
from mail.tasks import periodically

logger = structlog.get_logger()

CHECK_INTERVAL_SECONDS = 1.0
CHECK_TIMEOUT_SECONDS = 5.0


class SpoolMonitor:
    """`error` and `refusal` are None while the spool is usable."""

    def __init__(self, spool: Spool, min_free_bytes: int) -> None:
        self._spool = spool
        self._min_free_bytes = min_free_bytes
        self.error: str | None = None
        self.refusal: Reply | None = None  # reply to MAIL

    async def run(self) -> None:
        """Check every second until cancelled."""
        await periodically(CHECK_INTERVAL_SECONDS, self.check, "spool not checked, retrying", at_once=True)

    async def check(self) -> None:
        error: str | None = None
        refusal = replies.LOCAL_ERROR
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                free = await self._spool.free_bytes()
            if free is not None and free < self._min_free_bytes:
                error, refusal = f"spool disk has only {free >> 20} MiB free", replies.INSUFFICIENT_STORAGE
        except SpoolUnavailable as failure:
            error = str(failure)
        except TimeoutError:
            error = f"spool did not respond within {CHECK_TIMEOUT_SECONDS:g} s"
        if (error is None) != (self.error is None):
            if error is None:
                logger.info("spool available again, accepting new mail")
            else:
                logger.warning("spool unavailable, refusing new mail", error=error)
        self.error = error
        self.refusal = None if error is None else refusal
