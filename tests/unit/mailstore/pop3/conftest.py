"""Fixtures of the POP3 tests."""

from __future__ import annotations

import pytest

from mail.message import DeliveryId
from mailstore.memory import MemoryMailboxes
from tests.support.clients.pop3 import FIRST, OWNER, SECOND


@pytest.fixture
async def mailboxes() -> MemoryMailboxes:
    filled = MemoryMailboxes()
    await filled.append(OWNER, DeliveryId("A-0"), FIRST)
    await filled.append(OWNER, DeliveryId("B-0"), SECOND)
    return filled
