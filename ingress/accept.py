"""Acceptance of a message: the point where responsibility moves from the client to eilpost.

A check may refuse the message with 5xx; a failure before the append is confirmed is a 4xx reply, and the client
retries. A message that got 451 may still be appended, so a time-out can cause a duplicate, never a loss; content too
large for the record goes to the spool first, so no record names content that does not exist. Next: `router/decide.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from time import perf_counter

import structlog

from ingress import replies
from ingress.checks import Step
from ingress.content import content_start, normalize
from ingress.draft import Draft
from ingress.policy import Policy
from ingress.session import Accept
from ingress.tenant import tenant_of
from mail.address import path_text
from mail.directory import Snapshot
from mail.envelope import Envelope
from mail.log import Appender, LogUnavailable
from mail.message import Client, Content, Inline, Message
from mail.queue_id import new_queue_id
from mail.record import Accepted
from mail.reply import Reply
from mail.spool import Spool, SpoolUnavailable
from mail.telemetry.ingress import ACCEPT_DURATION, MESSAGE_SIZE, MESSAGES_RECEIVED

logger = structlog.get_logger()

_LOGGED_RECIPIENTS_MAX = 20  # addresses in one log line
_RECEIVED_ACCEPTED = MESSAGES_RECEIVED.labels("accepted")


async def _run(steps: Sequence[Step], draft: Draft) -> Reply | None:
    """Apply the steps in their order. Return the reply of the first one that refuses the message."""
    for step in steps:
        result = await asyncio.to_thread(step.run, draft) if step.in_thread else step.run(draft)
        if isinstance(result, Reply):
            return result
        if result is not None:
            draft.apply(result)
    return None


class Acceptance:
    """Checks, stamps, spools and appends messages. `timeout_seconds` must be longer than the append time-out of the
    log.
    """

    def __init__(self, *, appender: Appender, spool: Spool, inline_max: int, timeout_seconds: float) -> None:
        self._log = appender
        self._spool = spool
        self._inline_max = inline_max
        self._timeout_seconds = timeout_seconds

    async def receive(
        self, transaction: Accept, data: bytearray, *, client: Client, policy: Policy, snapshot: Snapshot
    ) -> tuple[Reply, Mapping[str, object]]:
        """Check, stamp and accept a message whose dot-stuffed content is `data`. Return the reply, and the fields of
        its log line when it is a refusal.
        """
        started = perf_counter()
        mail, recipients = transaction.mail, transaction.recipients
        start = content_start(data)
        data = normalize(data)
        content_bytes = len(data)
        message = Message(
            queue_id=new_queue_id(),
            tenant=tenant_of(mail.reverse_path, recipients, snapshot),
            received=datetime.now(UTC),
            envelope=Envelope(mail.reverse_path, recipients, mail.body, mail.smtputf8),
            size_bytes=content_bytes,
            client=client,
        )
        draft = Draft(message, data, start, policy.facts)
        sender = path_text(mail.reverse_path)
        refusal = await _run(policy.steps, draft)
        if refusal is not None:
            return refusal, {"sender": sender, "content_bytes": content_bytes}
        message, content = draft.finish()
        del data, draft  # during the append the content is in memory once
        reply = await self.accept(message, content)
        if reply.code != 250:
            return reply, {"queue_id": message.queue_id, "sender": sender}
        MESSAGE_SIZE.observe(content_bytes)
        logger.info(
            "message accepted",
            queue_id=message.queue_id,
            sender=sender,
            to=[str(recipient.original) for recipient in recipients[:_LOGGED_RECIPIENTS_MAX]],
            recipients=len(recipients),
            size_bytes=message.size_bytes,
            client=client.ip,
            helo=client.helo,
            protocol=client.protocol,
        )
        _RECEIVED_ACCEPTED.inc()
        ACCEPT_DURATION.observe(perf_counter() - started)
        return reply, {}

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
