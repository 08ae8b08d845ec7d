"""The Mailboxes port: mail at rest, each message kept exactly once per mailbox by its delivery id.

Durable when `keep` returns, and a second `keep` of the same delivery id changes nothing, also after the owner has moved
or deleted the first. Adapters: `maildir`, `memory`. Readers: `mailstore/pop3/`, later IMAP.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from mail.message import DeliveryId


class MailboxFull(Exception):
    """The owner's quota does not allow it (552 5.2.2 is permanent; we answer 452 4.2.2: the owner may clean up)."""


class MessageTooLarge(Exception):
    """The message alone is larger than the quota: it can never be kept (552 5.2.3, RFC 3463 X.2.3)."""


class MailboxInUse(Exception):
    """Another session has the mailbox open, here or in another process."""


class MailboxUnavailable(Exception):
    """The store does not answer, or its disk is full: try again later."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of a mailbox. `uid` is unique in the mailbox for ever and fit for UIDL (RFC 1939 section 7: 1-70
    of 0x21-0x7E).
    """

    uid: str
    size_bytes: int
    received: datetime
    seen: bool = False


class Mailboxes(Protocol):
    async def append(self, owner: str, delivery_id: DeliveryId, content: bytes, quota_bytes: int | None = None) -> bool:
        """Keep `content` for `owner` (an `Address.key`); True when it is new, False when this delivery id was kept
        before.

        Raises MailboxFull, MessageTooLarge, MailboxUnavailable.
        """
        ...

    def lock(self, owner: str) -> AbstractAsyncContextManager[None]:
        """Have the mailbox open alone among sessions of all processes (RFC 1939 section 4), until the context ends or
        the process dies. `keep` and other programs go on. Raises MailboxInUse, at once; MailboxUnavailable.
        """
        ...

    async def messages(self, owner: str) -> Sequence[StoredMessage]:
        """All messages, oldest first. A mailbox that was never written to is empty. Raises MailboxUnavailable."""
        ...

    async def read(self, owner: str, uid: str, start: int = 0, limit_bytes: int | None = None) -> bytes:
        """The content, byte for byte as it was kept; with `start` and `limit_bytes` a part of it (b"" past its end),
        so that no reader needs to hold a large message whole. Raises KeyError when it has gone, MailboxUnavailable.
        """
        ...

    async def expunge(self, owner: str, uids: Collection[str]) -> None:
        """Remove for good; what has gone already is no error. Raises MailboxUnavailable."""
        ...

    async def mark_seen(self, owner: str, uids: Collection[str]) -> None:
        """Flag as read; what has gone already is no error. Raises MailboxUnavailable."""
        ...

    async def used_bytes(self, owner: str) -> int:
        """What the mailbox holds, for quotas."""
        ...
