"""Maildir: Python's `mailbox.Maildir` as an independent reader of the same mailbox."""

from __future__ import annotations

import os
from collections.abc import Iterator
from mailbox import Maildir as Reader
from mailbox import MaildirMessage
from pathlib import Path

import pytest

from mail.message import DeliveryId
from tests.support.builders.maildirs import CONTENT, ID, OTHER, OWNER, files, mailbox_path, make_maildir

CONTENTS = {ID: CONTENT, OTHER: b"Subject: bare\n\n.\r\nFrom here\r\n\xff\x00", DeliveryId("C-0"): b""}


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Opens the mailbox; Python creates it when it is missing."""
    mailbox_path(tmp_path).parent.mkdir(parents=True)
    python_maildir = Reader(mailbox_path(tmp_path))
    yield python_maildir
    python_maildir.close()


def flag(tmp_path: Path, reader: Reader, key: str, flags: str) -> None:
    """Set flags as other programs do: rename the file as the reader would."""
    message = reader[key]
    message.set_flags(flags)
    message.set_subdir("cur")
    (path,) = (file for file in files(tmp_path, "new", "cur") if file.name.partition(":")[0] == key)
    path.rename(mailbox_path(tmp_path) / message.get_subdir() / f"{key}:{message.get_info()}")


async def test_reader_finds_appended_messages_new_and_complete(tmp_path: Path) -> None:
    maildir = make_maildir(tmp_path)
    for delivery_id, content in CONTENTS.items():
        await maildir.append(OWNER, delivery_id, content)
    reader = Reader(mailbox_path(tmp_path), create=False)
    assert sorted(reader.get_bytes(key) for key in reader.iterkeys()) == sorted(CONTENTS.values())
    for message in reader:
        assert (message.get_subdir(), message.get_flags(), message.get_info()) == ("new", "", "")
    assert reader.list_folders() == []


async def test_flags_of_both_programs_are_merged(tmp_path: Path, reader: Reader) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    await maildir.append(OWNER, OTHER, CONTENT)
    await maildir.mark_seen(OWNER, [ID])
    seen, unseen = sorted(reader.keys(), key=lambda key: ID not in key)
    assert [(reader[key].get_subdir(), reader[key].get_flags()) for key in (seen, unseen)] == [
        ("cur", "S"),
        ("new", ""),
    ]
    flag(tmp_path, reader, unseen, "TRF")
    assert [(stored.uid, stored.seen) for stored in await maildir.messages(OWNER)] == [(ID, True), (OTHER, False)]
    await maildir.mark_seen(OWNER, [OTHER])
    assert (reader[unseen].get_subdir(), reader[unseen].get_flags()) == ("cur", "FRST")
    flag(tmp_path, reader, unseen, "S")
    flag(tmp_path, reader, seen, "")
    assert [(stored.uid, stored.seen) for stored in await maildir.messages(OWNER)] == [(ID, False), (OTHER, True)]
    assert await maildir.read(OWNER, OTHER) == CONTENT


@pytest.mark.parametrize("flags", ["", "S", "DFPRST"])
@pytest.mark.parametrize("subdir", ["new", "cur"])
async def test_messages_added_by_the_reader_are_listed_read_flagged_and_expunged(
    tmp_path: Path, reader: Reader, subdir: str, flags: str
) -> None:
    message = MaildirMessage(b"Subject: uploaded\n\nbody\n")
    message.set_subdir(subdir)
    message.set_flags(flags)
    key = reader.add(message)
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    (stored,) = [message for message in await maildir.messages(OWNER) if message.uid != ID]
    assert stored.seen is ("S" in flags)
    with_crlf = b"Subject: uploaded\r\n\r\nbody\r\n"
    assert await maildir.read(OWNER, stored.uid) == with_crlf
    assert stored.size_bytes == len(with_crlf)
    await maildir.mark_seen(OWNER, [stored.uid])
    assert reader[key].get_flags() == "".join(sorted({*flags, "S"}))
    await maildir.expunge(OWNER, [stored.uid])
    assert key not in reader
    assert len(reader) == 1


async def test_folders_are_not_listed_but_count_for_the_quota(tmp_path: Path, reader: Reader) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    await maildir.append(OWNER, OTHER, CONTENT)
    archive = reader.add_folder("Archive")
    (key,) = [key for key in reader.iterkeys() if ID in key]
    archived = archive.add(reader[key])
    reader.remove(key)
    assert [stored.uid for stored in await maildir.messages(OWNER)] == [OTHER]
    assert await maildir.append(OWNER, ID, CONTENT) is False
    size = len(archive.get_bytes(archived))
    assert size > 0
    assert await maildir.used_bytes(OWNER) == len(CONTENT) + size
    await maildir.append(OWNER, DeliveryId("C-0"), b"x")
    assert (reader.list_folders(), len(reader), len(archive)) == (["Archive"], 2, 1)


async def test_messages_removed_by_either_program_are_gone(tmp_path: Path, reader: Reader) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    await maildir.append(OWNER, OTHER, CONTENT)
    (key,) = [key for key in reader.iterkeys() if ID in key]
    reader.remove(key)
    assert [stored.uid for stored in await maildir.messages(OWNER)] == [OTHER]
    await maildir.expunge(OWNER, [OTHER])
    assert reader.keys() == []


async def test_reader_clean_keeps_messages_and_journal(tmp_path: Path, reader: Reader) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    old = mailbox_path(tmp_path) / "tmp" / "old"
    old.touch()
    os.utime(old, (0, 0))
    reader.clean()
    assert not old.exists()
    assert len(reader) == 1
    assert await make_maildir(tmp_path).append(OWNER, ID, CONTENT) is False
