"""Maildir: the rules for names that Dovecot relies on, each on the disk and each with its source.

*The Maildir document*: https://cr.yp.to/proto/maildir.html. *Dovecot's*: "Maildir Mailbox Format" in its documentation,
https://doc.dovecot.org/main/core/config/mailbox/formats/maildir.html.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mail.message import DeliveryId
from mailstore.maildir import Maildir
from mailstore.names import parse_name, with_seen
from tests.support.builders.maildirs import CONTENT, ID, OTHER, OWNER, files, mailbox_path, make_maildir


async def test_a_name_is_unique_whatever_the_clock_says(tmp_path: Path) -> None:
    """Dovecot's, "Mail Delivery": all that matters is a name that is guaranteed to be unique; a clock may go back."""
    now = [1_700_000_000.0]
    maildir = make_maildir(tmp_path, clock=lambda: now[0])
    for number in range(50):
        now[0] -= number % 2
        await maildir.append(OWNER, DeliveryId(f"N{number}-0"), CONTENT)
    bases = {file.name.partition(":")[0].partition(",")[0] for file in files(tmp_path, "new")}
    assert len(bases) == 50


@pytest.mark.parametrize("hostname", ["mx.example.test", "a/b", "a:b,c", ".hidden", "", "x" * 300])
async def test_a_name_begins_with_the_time_and_holds_no_slash_colon_or_leading_dot(
    tmp_path: Path, hostname: str
) -> None:
    """The Maildir document: `/` and `:` of a host become `\\057` and `\\072`; names with a leading dot are skipped."""
    await Maildir(tmp_path / "mail", hostname).append(OWNER, ID, CONTENT)
    (file,) = files(tmp_path, "new")
    assert file.name.partition(".")[0].isdigit()
    assert ":" not in file.name
    assert len(os.fsencode(file.name)) <= 255
    assert parse_name(file.name).delivery_id == ID


@pytest.mark.parametrize("content", [b"", b"a\r\nb\r\n", b"a\nb\n", b"a\nb\r\nc", b"\r\r\n\n"])
async def test_s_is_the_files_size_and_w_the_size_with_crlf(tmp_path: Path, content: bytes) -> None:
    """Dovecot's, "Maildir Filename Extensions": `,S=<size>` instead of a stat(), `,W=<vsize>` is RFC822.SIZE."""
    await make_maildir(tmp_path).append(OWNER, ID, content)
    (file,) = files(tmp_path, "new")
    wire = file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert file.name.endswith(f",S={file.stat().st_size},W={len(wire)}")


async def test_a_new_message_has_no_flags_and_a_seen_one_is_in_cur(tmp_path: Path) -> None:
    """The Maildir document: what is in `new` has no info; a reader moves it to `cur`, as `unique:2,flags`."""
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    (new,) = files(tmp_path, "new")
    await maildir.mark_seen(OWNER, [ID])
    assert [file.name for file in files(tmp_path, "new", "cur")] == [f"{new.name}:2,S"]


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "S"), ("T", "ST"), ("DFPR", "DFPRS"), ("b", "Sb"), ("Tln", "STln"), ("TRa", "RSTa"), ("FF", "FS")],
)
async def test_flags_are_in_ascii_order_keywords_last(tmp_path: Path, before: str, after: str) -> None:
    """The Maildir document: flags in ASCII order. Dovecot's, "IMAP Keywords": `a..z` in the same field."""
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    (new,) = files(tmp_path, "new")
    new.rename(mailbox_path(tmp_path) / "cur" / f"{new.name}:2,{before}")
    await maildir.mark_seen(OWNER, [ID])
    assert [file.name for file in files(tmp_path, "new", "cur")] == [f"{new.name}:2,{after}"]


@pytest.mark.parametrize("fields", [",", ",x=S", ",Z,1=2"])
async def test_what_follows_a_comma_behind_the_flags_is_left_alone(tmp_path: Path, fields: str) -> None:
    """Dovecot's, "Maildir Filename Extensions": `<flags>[,<non-standard fields>]`, never touched behind the comma."""
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    (new,) = files(tmp_path, "new")
    new.rename(mailbox_path(tmp_path) / "cur" / f"{new.name}:2,T{fields}")
    foreign = mailbox_path(tmp_path) / "cur" / f"1000000000.M1P1.host:2,F{fields}"
    foreign.write_bytes(b"x\r\n")
    kept = await maildir.messages(OWNER)
    assert [(each.uid, each.seen) for each in kept] == [("1000000000.M1P1.host", False), (ID, False)]
    await maildir.mark_seen(OWNER, [each.uid for each in kept])
    names = {file.name for file in files(tmp_path, "new", "cur")}
    assert names == {f"{new.name}:2,ST{fields}", f"1000000000.M1P1.host:2,FS{fields}"}
    assert all(each.seen for each in await maildir.messages(OWNER))
    assert with_seen(f"a:2,{fields}") == f"a:2,S{fields}"


async def test_a_message_never_changes_nor_does_its_time(tmp_path: Path) -> None:
    """Dovecot's, "Usage of Timestamps" and "IMAP UID mapping": mtime is INTERNALDATE; messages are immutable."""
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    (file,) = files(tmp_path, "new")
    os.utime(file, (1_600_000_000,) * 2)
    before = file.stat()
    await maildir.mark_seen(OWNER, [ID])
    await maildir.append(OWNER, ID, b"other")
    (file,) = files(tmp_path, "cur")
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)
    assert file.read_bytes() == CONTENT


async def test_no_file_of_ours_looks_like_a_folder_and_no_dot_file_is_a_message(tmp_path: Path) -> None:
    """Dovecot's, "Directory Layout": what begins with a dot is a folder of Maildir++. The Maildir document: in `new`
    and `cur` it is no message.
    """
    maildir = make_maildir(tmp_path)
    owners = (OWNER, '".hidden"@example.test', ".hidden@example.test", "a@.example.test")
    for owner in owners:
        await maildir.append(owner, ID, CONTENT)
        async with maildir.lock(owner):
            await maildir.mark_seen(owner, [ID])
    assert [path for path in (tmp_path / "mail").rglob("*") if path.name.startswith(".")] == []
    for folder in ("new", "cur"):
        (mailbox_path(tmp_path) / folder / ".nfs0001").write_bytes(b"x")
    await maildir.append(OWNER, OTHER, CONTENT)
    assert {kept.uid for kept in await maildir.messages(OWNER)} == {ID, OTHER}
    assert await maildir.used_bytes(OWNER) == 2 * len(CONTENT)
