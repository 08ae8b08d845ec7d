"""The one instant at which responsibility for a message moves from its sender to us.

Before it the message is the sender's: whatever fails, the answer is 4xx, and the sender tries again. After it the
message is ours, and only then may the session say 250. Content too large to ride in the record goes to the spool
first, so that a record never names content that is not there. A time-out is a possible duplicate, never a loss: the
log may still write what we answered 451 to. Never here: whether to take the message (`policy`). Next:
`router/decide.py`.
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
    """Makes messages ours. `timeout_seconds` is the last resort: the log gives up by itself before."""

    def __init__(self, *, appender: Appender, spool: Spool, inline_max: int, timeout_seconds: float) -> None:
        self._log = appender
        self._spool = spool
        self._inline_max = inline_max
        self._timeout_seconds = timeout_seconds

    async def accept(self, message: Message, data: bytes) -> Reply:
        """A 250 when the message is ours; a 4xx when it is still the sender's, or when that is not known."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                content: Content = Inline(data)
                if len(data) > self._inline_max:
                    content = await self._spool.put(data)
                # When this line has run, the message is ours (state S2): it is durable, and 250 may be said.
                await self._log.append(Accepted(message, content))
        except SpoolUnavailable as error:
            logger.warning("not accepted", queue_id=message.queue_id, why="spool", error=str(error))
            return replies.LOCAL_ERROR
        except (LogUnavailable, TimeoutError) as error:
            logger.warning("not accepted", queue_id=message.queue_id, why="log", error=str(error) or "timed out")
            return replies.NOT_CONFIRMED
        return Reply(250, "2.0.0", f"Ok: queued as {message.queue_id}")
