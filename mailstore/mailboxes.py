"""The Mailboxes port: stores each message exactly once per mailbox, by delivery id.

A message is durable when `append` returns, and a second `append` of the same delivery id changes nothing, even after
the owner moved or deleted the first copy. Adapters: `maildir`, `memory`. Reader: `mailstore/pop3/`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from mail.message import DeliveryId


class MailboxFull(Exception):
    """The owner's quota is used up. The reply is 452 4.2.2, not 552 5.2.2, as the owner may delete messages."""


class MessageTooLarge(Exception):
    """The message alone is larger than the quota: it can never be stored (552 5.2.3, RFC 3463 X.2.3)."""


class MailboxInUse(Exception):
    """The mailbox is open in another session, in this or another process."""


class MailboxUnavailable(Exception):
    """The store does not respond, or its disk is full. Temporary."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of a mailbox. `uid` is never reused in the mailbox and valid for UIDL (RFC 1939 section 7: 1-70
    characters of 0x21-0x7E).
    """

    uid: str
    size_bytes: int
    received: datetime
    seen: bool = False


class Mailboxes(Protocol):
    async def append(self, owner: str, delivery_id: DeliveryId, content: bytes, quota_bytes: int | None = None) -> bool:
        """Store `content` for `owner` (an `Address.key`). Return False when this delivery id was appended before.

        Raises MailboxFull, MessageTooLarge, MailboxUnavailable.
        """
        ...

    def session_lock(self, owner: str) -> AbstractAsyncContextManager[None]:
        """Lock the mailbox against other sessions of all processes (RFC 1939 section 4) until the context exits or the
        process dies. `append` and other programs are not blocked. Raises MailboxInUse at once; MailboxUnavailable.
        """
        ...

    async def messages(self, owner: str) -> Sequence[StoredMessage]:
        """All messages, oldest first; empty for a mailbox without messages. Raises MailboxUnavailable."""
        ...

    async def read(self, owner: str, uid: str, start: int = 0, limit_bytes: int | None = None) -> bytes:
        """The content, byte for byte; with `start` and `limit_bytes` a part of it (b"" past the end), so that a large
        message need not be in memory. Raises KeyError when the message was removed, MailboxUnavailable.
        """
        ...

    async def expunge(self, owner: str, uids: Collection[str]) -> None:
        """Remove messages; missing ones are ignored. Raises MailboxUnavailable."""
        ...

    async def mark_seen(self, owner: str, uids: Collection[str]) -> None:
        """Flag messages as seen; missing ones are ignored. Raises MailboxUnavailable."""
        ...

    async def used_bytes(self, owner: str) -> int:
        """Size of all messages of the mailbox, for quotas."""
        ...
