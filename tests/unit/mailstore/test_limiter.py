"""A locked mailbox delays only its own jobs."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import time
from pathlib import Path

import pytest

from mail.message import DeliveryId
from mailstore.mailboxes import MailboxUnavailable
from mailstore.maildir import Maildir

ALICE, BOB = "alice@example.test", "bob@example.test"


def ids(prefix: str, count: int) -> list[DeliveryId]:
    return [DeliveryId(f"{prefix}{number:03}-1") for number in range(count)]


def hold_lock(tmp_path: Path) -> int:
    (lock,) = (tmp_path / "mail").rglob("eilpost-lock")
    holder = os.open(lock, os.O_WRONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    return holder


async def test_locked_mailbox_does_not_delay_other_mailboxes(tmp_path: Path) -> None:
    maildir = Maildir(tmp_path / "mail", "mx.example.test")
    await maildir.append(ALICE, DeliveryId("FIRST-1"), b"x")
    holder = hold_lock(tmp_path)
    waiting = [asyncio.create_task(maildir.append(ALICE, delivery_id, b"x")) for delivery_id in ids("A", 59)]
    await asyncio.sleep(0.1)
    started = time.monotonic()
    for delivery_id in ids("B", 20):
        assert await maildir.append(BOB, delivery_id, b"x")
    assert time.monotonic() - started < 5
    assert not any(task.done() for task in waiting)
    os.close(holder)
    assert all(await asyncio.gather(*waiting))
    assert len(await maildir.messages(ALICE)) == 60
    assert list((tmp_path / "mail").rglob("tmp/*")) == []
    gc.collect()
    assert len(maildir._limiter._semaphores) == 0


async def test_expunge_waits_for_the_mailbox_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maildir = Maildir(tmp_path / "mail", "mx.example.test")
    await maildir.append(ALICE, DeliveryId("FIRST-1"), b"x")
    (stored,) = await maildir.messages(ALICE)
    holder = hold_lock(tmp_path)
    monkeypatch.setattr("mailstore.maildir.limiter.LOCK_SECONDS", 0.05)
    with pytest.raises(MailboxUnavailable, match="lock"):
        await maildir.expunge(ALICE, [stored.uid])
    os.close(holder)
    await maildir.expunge(ALICE, [stored.uid])
    assert await maildir.messages(ALICE) == []
