"""In-memory adapter of the Mailboxes port, for tests and trials; nothing survives the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from mail.message import DeliveryId
from mailstore.mailboxes import MailboxFull, MailboxInUse, MessageTooLarge, StoredMessage


@dataclass(slots=True)
class _Mailbox:
    messages: dict[str, StoredMessage] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    ids: set[DeliveryId] = field(default_factory=set)


class MemoryMailboxes:
    """The Mailboxes port over dictionaries."""

    def __init__(self) -> None:
        self._mailboxes: dict[str, _Mailbox] = {}
        self.locked: set[str] = set()

    async def append(self, owner: str, delivery_id: DeliveryId, content: bytes, quota_bytes: int | None = None) -> bool:
        mailbox = self._mailboxes.setdefault(owner, _Mailbox())
        if delivery_id in mailbox.ids:
            return False
        if quota_bytes is not None and len(content) > quota_bytes:
            raise MessageTooLarge(f"{owner}: {len(content)} octets exceed the quota of {quota_bytes}")
        used = sum(map(len, mailbox.contents.values()))
        if quota_bytes is not None and used + len(content) > quota_bytes:
            raise MailboxFull(f"{owner}: {used} of {quota_bytes} octets used")
        mailbox.ids.add(delivery_id)
        mailbox.contents[delivery_id] = content
        mailbox.messages[delivery_id] = StoredMessage(delivery_id, len(content), datetime.now(UTC))
        return True

    @asynccontextmanager
    async def session_lock(self, owner: str) -> AsyncIterator[None]:
        if owner in self.locked:
            raise MailboxInUse(owner)
        self.locked.add(owner)
        try:
            yield
        finally:
            self.locked.discard(owner)

    async def messages(self, owner: str) -> Sequence[StoredMessage]:
        return list(self._mailboxes.get(owner, _Mailbox()).messages.values())

    async def read(self, owner: str, uid: str, start: int = 0, limit_bytes: int | None = None) -> bytes:
        content = self._mailboxes.get(owner, _Mailbox()).contents[uid]
        return content[start : None if limit_bytes is None else start + limit_bytes]

    async def expunge(self, owner: str, uids: Collection[str]) -> None:
        mailbox = self._mailboxes.get(owner, _Mailbox())
        for uid in uids:
            mailbox.messages.pop(uid, None)
            mailbox.contents.pop(uid, None)

    async def mark_seen(self, owner: str, uids: Collection[str]) -> None:
        mailbox = self._mailboxes.get(owner, _Mailbox())
        for uid in uids:
            if uid in mailbox.messages:
                mailbox.messages[uid] = replace(mailbox.messages[uid], seen=True)

    async def used_bytes(self, owner: str) -> int:
        return sum(map(len, self._mailboxes.get(owner, _Mailbox()).contents.values()))
