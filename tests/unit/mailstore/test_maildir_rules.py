"""Maildir: the file name rules that Dovecot relies on, checked on disk, each with its source.

*Maildir document*: https://cr.yp.to/proto/maildir.html. *Dovecot*: "Maildir Mailbox Format" in its documentation,
https://doc.dovecot.org/main/core/config/mailbox/formats/maildir.html.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mail.message import DeliveryId
from mailstore.maildir import Maildir
from mailstore.maildir.names import parse_name, with_seen
from tests.support.builders.maildirs import CONTENT, ID, OTHER, OWNER, files, mailbox_path, make_maildir


async def test_file_names_are_unique_when_the_clock_goes_back(tmp_path: Path) -> None:
    """Dovecot, "Mail Delivery": the name only has to be unique; the clock may go back."""
    now = [1_700_000_000.0]
    maildir = make_maildir(tmp_path, clock=lambda: now[0])
    for number in range(50):
        now[0] -= number % 2
        await maildir.append(OWNER, DeliveryId(f"N{number}-0"), CONTENT)
    bases = {file.name.partition(":")[0].partition(",")[0] for file in files(tmp_path, "new")}
    assert len(bases) == 50


@pytest.mark.parametrize("hostname", ["mx.example.test", "a/b", "a:b,c", ".hidden", "", "x" * 300])
async def test_file_name_begins_with_the_time_and_has_no_slash_or_colon(tmp_path: Path, hostname: str) -> None:
    """Maildir document: `/` and `:` of a host become `\\057` and `\\072`; names with a leading dot are skipped."""
    await Maildir(tmp_path / "mail", hostname).append(OWNER, ID, CONTENT)
    (file,) = files(tmp_path, "new")
    assert file.name.partition(".")[0].isdigit()
    assert ":" not in file.name
    assert len(os.fsencode(file.name)) <= 255
    assert parse_name(file.name).delivery_id == ID


@pytest.mark.parametrize("content", [b"", b"a\r\nb\r\n", b"a\nb\n", b"a\nb\r\nc", b"\r\r\n\n"])
async def test_s_is_the_file_size_and_w_the_size_with_crlf(tmp_path: Path, content: bytes) -> None:
    """Dovecot, "Maildir Filename Extensions": `,S=<size>` replaces a stat(), `,W=<vsize>` is RFC822.SIZE."""
    await make_maildir(tmp_path).append(OWNER, ID, content)
    (file,) = files(tmp_path, "new")
    with_crlf = file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert file.name.endswith(f",S={file.stat().st_size},W={len(with_crlf)}")


async def test_new_message_has_no_flags_and_a_seen_one_is_in_cur(tmp_path: Path) -> None:
    """Maildir document: names in `new` have no info; a reader moves the file to `cur` as `unique:2,flags`."""
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
    """Maildir document: flags in ASCII order. Dovecot, "IMAP Keywords": `a..z` in the same field."""
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    (new,) = files(tmp_path, "new")
    new.rename(mailbox_path(tmp_path) / "cur" / f"{new.name}:2,{before}")
    await maildir.mark_seen(OWNER, [ID])
    assert [file.name for file in files(tmp_path, "new", "cur")] == [f"{new.name}:2,{after}"]


@pytest.mark.parametrize("fields", [",", ",x=S", ",Z,1=2"])
async def test_fields_after_the_flags_are_preserved(tmp_path: Path, fields: str) -> None:
    """Dovecot, "Maildir Filename Extensions": `<flags>[,<non-standard fields>]`; the fields stay unchanged."""
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT)
    (new,) = files(tmp_path, "new")
    new.rename(mailbox_path(tmp_path) / "cur" / f"{new.name}:2,T{fields}")
    external = mailbox_path(tmp_path) / "cur" / f"1000000000.M1P1.host:2,F{fields}"
    external.write_bytes(b"x\r\n")
    stored = await maildir.messages(OWNER)
    assert [(message.uid, message.seen) for message in stored] == [("1000000000.M1P1.host", False), (ID, False)]
    await maildir.mark_seen(OWNER, [message.uid for message in stored])
    names = {file.name for file in files(tmp_path, "new", "cur")}
    assert names == {f"{new.name}:2,ST{fields}", f"1000000000.M1P1.host:2,FS{fields}"}
    assert all(message.seen for message in await maildir.messages(OWNER))
    assert with_seen(f"a:2,{fields}") == f"a:2,S{fields}"


async def test_content_and_mtime_never_change(tmp_path: Path) -> None:
    """Dovecot, "Usage of Timestamps" and "IMAP UID mapping": mtime is INTERNALDATE; messages are immutable."""
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


async def test_own_files_have_no_leading_dot_and_dot_files_are_not_messages(tmp_path: Path) -> None:
    """Dovecot, "Directory Layout": a directory with a leading dot is a Maildir++ folder. Maildir document: in `new` and
    `cur` a file with a leading dot is not a message.
    """
    maildir = make_maildir(tmp_path)
    owners = (OWNER, '".hidden"@example.test', ".hidden@example.test", "a@.example.test")
    for owner in owners:
        await maildir.append(owner, ID, CONTENT)
        async with maildir.session_lock(owner):
            await maildir.mark_seen(owner, [ID])
    assert [path for path in (tmp_path / "mail").rglob("*") if path.name.startswith(".")] == []
    for folder in ("new", "cur"):
        (mailbox_path(tmp_path) / folder / ".nfs0001").write_bytes(b"x")
    await maildir.append(OWNER, OTHER, CONTENT)
    assert {stored.uid for stored in await maildir.messages(OWNER)} == {ID, OTHER}
    assert await maildir.used_bytes(OWNER) == 2 * len(CONTENT)
