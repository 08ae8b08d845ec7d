"""Acceptance of a message: the point where responsibility moves from the client to eilpost.

Before the append every failure is a 4xx reply and the client retries; only after it does the session send 250. Content
too large for the record goes to the spool first, so a record never names content that does not exist. A message that
got 451 may still be appended, so a time-out can cause a duplicate, never a loss. Next: `router/decide.py`.
"""

from __future__ import annotations

import asyncio

import structlog

from ingress import replies
from mail.log import Appender, LogUnavailable
from mail.message import Content, Inline, Message
from mail.record import Accepted
from mail.reply import Reply
from mail.spool import Spool, SpoolUnavailable

logger = structlog.get_logger()


class Acceptance:
    """Spools and appends messages. `timeout_seconds` must be longer than the log's own append time-out."""

    def __init__(self, *, appender: Appender, spool: Spool, inline_max: int, timeout_seconds: float) -> None:
        self._log = appender
        self._spool = spool
        self._inline_max = inline_max
        self._timeout_seconds = timeout_seconds

    async def accept(self, message: Message, data: bytes) -> Reply:
        """Return 250 when the message is durable, 4xx when it is not or when that is unknown."""
        is_spooling = len(data) > self._inline_max
        try:
            async with asyncio.timeout(self._timeout_seconds):
                content: Content = Inline(data)
                if is_spooling:
                    content = await self._spool.put(data)
                    is_spooling = False
                # Responsibility moves here: after this line the message is durable and 250 may be sent.
                await self._log.append(Accepted(message, content))
        except (SpoolUnavailable, LogUnavailable, TimeoutError) as error:
            event = f"message not accepted, {'spool' if is_spooling else 'log'} failed"
            logger.warning(event, queue_id=message.queue_id, error=str(error) or "timed out")
            # A failed spool write leaves no doubt: the append has not begun.
            return replies.LOCAL_ERROR if is_spooling else replies.NOT_CONFIRMED
        return Reply(250, "2.0.0", f"Ok: queued as {message.queue_id}")
