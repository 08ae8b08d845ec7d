"""A symbolic link in place of a folder of a mailbox is not followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mail.message import DeliveryId
from mailstore.mailboxes import MailboxUnavailable
from mailstore.maildir import Maildir
from tests.support.builders.maildirs import CONTENT, ID, OWNER, mailbox_path, make_maildir

OTHER_ID = DeliveryId("OTHER-0")


async def replace_by_link(maildir: Maildir, home: Path, name: str) -> Path:
    """A mailbox with one message, whose folder is a link to a directory elsewhere."""
    await maildir.append(OWNER, ID, CONTENT)
    folder, elsewhere = mailbox_path(home) / name, home / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "1700000000.secret").write_bytes(b"secret")
    os.rename(folder, home / "moved")
    os.symlink(elsewhere, folder)
    return elsewhere


@pytest.mark.parametrize("name", ["new", "tmp"])
async def test_a_message_is_not_written_through_a_link(name: str, tmp_path: Path) -> None:
    maildir = make_maildir(tmp_path)
    elsewhere = await replace_by_link(maildir, tmp_path, name)
    with pytest.raises(MailboxUnavailable):
        await maildir.append(OWNER, OTHER_ID, CONTENT)
    assert [path.name for path in elsewhere.iterdir()] == ["1700000000.secret"]


@pytest.mark.parametrize("name", ["new", "cur"])
async def test_files_behind_a_link_are_not_messages(name: str, tmp_path: Path) -> None:
    maildir = make_maildir(tmp_path)
    await replace_by_link(maildir, tmp_path, name)
    assert [message.uid for message in await maildir.messages(OWNER)] == [ID] * (name == "cur")


async def test_a_message_is_not_moved_through_a_link(tmp_path: Path) -> None:
    maildir = make_maildir(tmp_path)
    elsewhere = await replace_by_link(maildir, tmp_path, "cur")
    with pytest.raises(MailboxUnavailable):
        await maildir.mark_seen(OWNER, [ID])
    assert [path.name for path in elsewhere.iterdir()] == ["1700000000.secret"]
