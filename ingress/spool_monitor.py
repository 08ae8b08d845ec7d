"""Periodic check whether the spool can store new messages; the result is read at every MAIL.

A message that has to wait goes to the spool whatever its size, so new mail is refused with 452 when the spool is full
and with 451 when it fails.
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
    """`reason` and `refusal` are None while the spool is usable."""

    def __init__(self, spool: Spool, min_free_bytes: int) -> None:
        self._spool = spool
        self._min_free_bytes = min_free_bytes
        self.reason: str | None = None
        self.refusal: Reply | None = None  # reply to MAIL

    async def run(self) -> None:
        """Check every second until cancelled."""
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
                reason, refusal = f"spool disk has only {free >> 20} MiB free", replies.INSUFFICIENT_STORAGE
        except SpoolUnavailable as error:
            reason = str(error)
        except TimeoutError:
            reason = f"spool did not respond within {CHECK_TIMEOUT_SECONDS:g} s"
        if (reason is None) != (self.reason is None):
            if reason is None:
                logger.info("spool available again, accepting new mail")
            else:
                logger.warning("spool unavailable, refusing new mail", reason=reason)
        self.reason = reason
        self.refusal = None if reason is None else refusal
