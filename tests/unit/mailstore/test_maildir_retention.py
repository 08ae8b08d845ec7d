"""Maildir: how long delivery ids are known, and after a power failure."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from mail.message import DeliveryId
from mailstore.maildir import mailbox_lock as mailbox_lock_module
from tests.support.builders.maildirs import CONTENT, ID, OTHER, OWNER, files, mailbox_path, make_maildir, remove_journal


async def test_id_in_a_folder_is_known_after_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_maildir(tmp_path).append(OWNER, ID, CONTENT)
    archive = mailbox_path(tmp_path) / ".Archive" / "cur"
    archive.mkdir(parents=True)
    (file,) = files(tmp_path, "new")
    file.rename(archive / f"{file.name}:2,S")
    remove_journal(tmp_path)
    monkeypatch.setattr(mailbox_lock_module, "boot_id", lambda: "boot-2")
    again = make_maildir(tmp_path)
    assert await again.append(OWNER, ID, CONTENT) is False
    assert await again.used_bytes(OWNER) == len(CONTENT)


async def test_message_lost_in_a_power_failure_is_appended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the journal has the id, no file and no expunge line: a duplicate is better than a loss."""
    await make_maildir(tmp_path).append(OWNER, ID, CONTENT)
    files(tmp_path, "new")[0].unlink()
    monkeypatch.setattr(mailbox_lock_module, "boot_id", lambda: "boot-2")
    assert await make_maildir(tmp_path).append(OWNER, ID, CONTENT) is True
    assert await make_maildir(tmp_path).append(OWNER, ID, CONTENT) is False


async def test_expunged_id_is_known_after_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_maildir(tmp_path)
    await first.append(OWNER, ID, CONTENT)
    await first.expunge(OWNER, [ID])
    monkeypatch.setattr(mailbox_lock_module, "boot_id", lambda: "boot-2")
    assert await make_maildir(tmp_path).append(OWNER, ID, CONTENT) is False


async def test_ids_are_kept_for_the_retention_time_and_then_dropped(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    day = 86_400
    maildir = make_maildir(tmp_path, retention=timedelta(days=14), clock=lambda: now[0])

    async def pass_days(days: int) -> None:
        for number in range(days):
            now[0] += day
            await maildir.append(OWNER, DeliveryId(f"D{now[0]:.0f}-{number}"), b"x")

    await maildir.append(OWNER, ID, CONTENT)
    await maildir.expunge(OWNER, [ID])
    await pass_days(13)
    assert await maildir.append(OWNER, ID, CONTENT) is False
    await pass_days(20)
    journals = sorted(mailbox_path(tmp_path).glob("eilpost-delivered*"))
    assert len(journals) == 2
    assert sum(journal.stat().st_size for journal in journals) < 33 * 40
    assert not any(ID.encode() in journal.read_bytes() for journal in journals)


async def test_old_tmp_files_are_removed_and_linked_ids_recorded(tmp_path: Path) -> None:
    await make_maildir(tmp_path).append(OWNER, ID, CONTENT)
    linked = mailbox_path(tmp_path) / "tmp" / f"1.M000001_{OTHER}.mx,S=1,W=1.9-ab.1"
    fresh = mailbox_path(tmp_path) / "tmp" / "1.M000001_FRESH-0.mx,S=1,W=1.9-ab.2"
    old = mailbox_path(tmp_path) / "tmp" / "whatever"
    for file in (linked, fresh, old):
        file.write_bytes(b"x")
    os.link(linked, mailbox_path(tmp_path) / "new" / "1.M000001_x.mx,S=1,W=1")
    for file in (linked, old):
        os.utime(file, (time.time() - 40 * 3600,) * 2)
    again = make_maildir(tmp_path)
    await again.append(OWNER, DeliveryId("Z-0"), b"z")
    assert files(tmp_path, "tmp") == [fresh]
    assert await again.append(OWNER, OTHER, b"x") is False


async def test_journal_of_the_first_format_is_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mailboxes outlive releases, so later versions must read this file."""
    monkeypatch.setattr(mailbox_lock_module, "boot_id", lambda: "boot-2")
    await make_maildir(tmp_path).append(OWNER, OTHER, CONTENT)
    maildir = make_maildir(tmp_path, clock=lambda: 1_700_100_000.0)
    (mailbox_path(tmp_path) / "eilpost-delivered.old").write_text("b boot-0 1690000000\nk OLD-0\nx GONE-0\n")
    (mailbox_path(tmp_path) / "eilpost-delivered").write_bytes(
        b"b boot-1 1700000000\nk PERHAPS-0\nnonsense\n\xff\x00\n\nb boot-2 1700090000\nk SURE-0\nz later kind\nk TORN-"
    )
    ids = ["OLD-0", "GONE-0", "PERHAPS-0", "SURE-0", "TORN-0"]
    assert [await maildir.append(OWNER, DeliveryId(name), b"x") for name in ids] == [True, False, True, False, True]
    again = make_maildir(tmp_path, clock=lambda: 1_700_100_000.0)
    assert [await again.append(OWNER, DeliveryId(name), b"x") for name in ids] == [False] * 5
