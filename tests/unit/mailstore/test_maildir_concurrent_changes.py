"""Maildir: other programs move, flag, remove and add files in the same mailbox."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mail.message import DeliveryId
from mailstore import maildir as maildir_module
from mailstore.mailboxes import MailboxFull
from mailstore.maildir import listing as listing_module
from tests.support.builders.maildirs import CONTENT, ID, OTHER, OWNER, files, mailbox_path, make_maildir, move_to_cur


@pytest.mark.parametrize("restarted", [False, True])
async def test_id_is_known_after_dovecot_moved_flagged_or_removed_the_message(tmp_path: Path, restarted: bool) -> None:
    first = make_maildir(tmp_path)
    await first.append(OWNER, ID, CONTENT)
    move_to_cur(tmp_path)
    second = make_maildir(tmp_path) if restarted else first
    assert await second.append(OWNER, ID, CONTENT) is False
    files(tmp_path, "cur")[0].unlink()
    third = make_maildir(tmp_path) if restarted else first
    assert await third.append(OWNER, ID, CONTENT) is False
    assert await third.messages(OWNER) == []


async def test_external_files_are_read_with_crlf(tmp_path: Path) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    external = mailbox_path(tmp_path) / "cur" / "1000000000.M1P1.host:2,S"
    external.write_bytes(b"Subject: x\n\nbody\n")
    (mailbox_path(tmp_path) / "cur" / ".hidden").write_bytes(b"x")
    first, _second = await maildir.messages(OWNER)
    assert (first.uid, first.seen) == ("1000000000.M1P1.host", True)
    with_crlf = b"Subject: x\r\n\r\nbody\r\n"
    assert first.size_bytes == len(with_crlf)
    assert await maildir.read(OWNER, first.uid) == with_crlf
    assert await maildir.read(OWNER, first.uid, 10, 4) == with_crlf[10:14]


async def test_names_with_impossible_time_are_listed(tmp_path: Path) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    for seconds in ("9" * 11, "9" * 15, "9" * 40):
        (mailbox_path(tmp_path) / "cur" / f"{seconds}.M000000_{seconds}.host,S=3,W=3:2,").write_bytes(b"x\r\n")
    stored = await maildir.messages(OWNER)
    assert len(stored) == 4
    assert [await maildir.read(OWNER, message.uid) for message in stored].count(b"x\r\n") == 3


async def test_read_and_expunge_find_a_moved_message(tmp_path: Path) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    await maildir.messages(OWNER)
    move_to_cur(tmp_path)
    assert await maildir.read(OWNER, ID) == CONTENT
    await maildir.mark_seen(OWNER, [ID])
    (file,) = files(tmp_path, "cur")
    assert file.name.endswith(":2,FRS")
    assert await maildir.read(OWNER, ID) == CONTENT
    await maildir.expunge(OWNER, [ID])
    assert files(tmp_path, "new", "cur") == []


async def test_quota_uses_a_fresh_size_after_changes_of_other_programs(tmp_path: Path) -> None:
    """A message is never refused because of a cached size, and a cached size expires."""
    now = [1_700_000_000.0]
    maildir = make_maildir(tmp_path, clock=lambda: now[0])
    await maildir.append(OWNER, ID, b"x" * 90, 100)
    files(tmp_path, "new")[0].unlink()
    assert await maildir.append(OWNER, OTHER, b"x" * 90, 100) is True
    (mailbox_path(tmp_path) / "cur" / "1000000000.M1P1.host,S=50,W=50:2,").write_bytes(b"y" * 50)
    now[0] += 120
    with pytest.raises(MailboxFull):
        await maildir.append(OWNER, DeliveryId("C-0"), b"x" * 5, 100)


async def test_append_recreates_missing_directories(tmp_path: Path) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    for name in ("new", "cur"):
        shutil.rmtree(mailbox_path(tmp_path) / name)
    assert await maildir.append(OWNER, OTHER, CONTENT) is True
    shutil.rmtree(mailbox_path(tmp_path))
    assert await maildir.append(OWNER, DeliveryId("C-0"), CONTENT) is True
    assert len(await maildir.messages(OWNER)) == 1


async def test_expunge_finds_messages_moved_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maildir = make_maildir(tmp_path)
    for number in range(20):
        await maildir.append(OWNER, DeliveryId(f"N{number}-0"), b"x")
    listings = 0
    real = maildir_module.list_files

    def list_and_move(path: Path, *, folders: bool = False) -> Any:
        nonlocal listings
        listings += 1
        found = list(real(path, folders=folders))
        if listings == 1:
            move_to_cur(tmp_path)
        return iter(found)

    for module in (maildir_module, listing_module):
        monkeypatch.setattr(module, "list_files", list_and_move)
    await maildir.expunge(OWNER, [f"N{number}-0" for number in range(15)])
    assert len(files(tmp_path, "new", "cur")) == 5
    assert listings == 2
