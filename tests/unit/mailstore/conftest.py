"""What the tests of POP3 share."""

from __future__ import annotations

import pytest

from mail.message import DeliveryId
from mailstore.memory import MemoryMailboxes
from tests.support.clients.pop3 import FIRST, OWNER, SECOND


@pytest.fixture
async def mailboxes() -> MemoryMailboxes:
    boxes = MemoryMailboxes()
    await boxes.append(OWNER, DeliveryId("A-0"), FIRST)
    await boxes.append(OWNER, DeliveryId("B-0"), SECOND)
    return boxes
