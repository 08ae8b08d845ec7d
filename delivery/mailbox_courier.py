"""Mailbox courier: final delivery into a mailbox of this system.

Return-Path and Delivered-To are prepended, and Return-Path fields of the message are removed (RFC 5321 section 4.4);
nothing else is changed. The mailbox deduplicates by delivery id.
"""

from __future__ import annotations

import asyncio

import structlog

from delivery.courier import Progress, same_outcome
from mail.directory import Directory
from mail.header_section import without_field
from mail.outcome import Outcome
from mail.record import Delivery
from mail.reply import Reply
from mail.route import ToMailbox
from mail.telemetry.log import DUPLICATES_SUPPRESSED
from mailstore.mailboxes import Mailboxes, MailboxFull, MailboxUnavailable, MessageTooLarge

logger = structlog.get_logger()

DELIVERED = Reply(250, "2.0.0", "Delivered to mailbox")
DUPLICATE_SUPPRESSED = Reply(250, "2.0.0", "Duplicate delivery suppressed")
NO_SUCH_MAILBOX = Reply(550, "5.1.1", "The mailbox no longer exists")
MAILBOX_FULL = Reply(452, "4.2.2", "The mailbox is full")
MESSAGE_TOO_LARGE = Reply(552, "5.2.3", "The message exceeds the size of the whole mailbox")  # RFC 3463 X.2.3
MAILBOX_UNAVAILABLE = Reply(451, "4.3.0", "The mailbox cannot be written now")

APPEND_TIMEOUT_SECONDS = 30.0  # three times the mailbox's lock time-out


class MailboxCourier:
    """Implements `delivery.courier.Courier` for ToMailbox."""

    def __init__(self, *, mailboxes: Mailboxes, directory: Directory) -> None:
        self._mailboxes = mailboxes
        self._directory = directory
        self._suppressed = DUPLICATES_SUPPRESSED.labels("mailbox")

    async def deliver(
        self, delivery: Delivery, content: bytes, _progress: Progress | None = None, /
    ) -> tuple[Outcome, ...]:
        """See the port. All recipients belong to one owner, so one copy is stored."""
        route, envelope = delivery.route, delivery.message.envelope
        ids = {"queue_id": delivery.message.queue_id, "delivery_id": delivery.id}
        assert isinstance(route, ToMailbox)
        user = self._directory.snapshot.users.get(route.owner)
        if user is None:
            return same_outcome(envelope, NO_SUCH_MAILBOX)
        sender = "" if envelope.reverse_path is None else envelope.reverse_path.downgraded
        header = f"Return-Path: <{sender}>\r\n" + "".join(
            f"Delivered-To: {address}\r\n"
            for address in dict.fromkeys(recipient.address.downgraded for recipient in envelope.recipients)
        )
        try:
            async with asyncio.timeout(APPEND_TIMEOUT_SECONDS):
                is_new = await self._mailboxes.append(
                    route.owner, delivery.id, header.encode() + without_field(content, b"return-path"), user.quota_bytes
                )
        except TimeoutError:
            # The message may be stored all the same; the next attempt is deduplicated by the delivery id.
            logger.warning("mailbox append timed out, delivery deferred", **ids, timeout_seconds=APPEND_TIMEOUT_SECONDS)
            return same_outcome(envelope, MAILBOX_UNAVAILABLE)
        except MailboxFull:
            return same_outcome(envelope, MAILBOX_FULL)
        except MessageTooLarge:
            return same_outcome(envelope, MESSAGE_TOO_LARGE)  # a retry cannot succeed
        except MailboxUnavailable as error:
            logger.warning("mailbox unavailable, delivery deferred", **ids, error=str(error))
            return same_outcome(envelope, MAILBOX_UNAVAILABLE)
        if not is_new:
            self._suppressed.inc()
        return same_outcome(envelope, DELIVERED if is_new else DUPLICATE_SUPPRESSED)
