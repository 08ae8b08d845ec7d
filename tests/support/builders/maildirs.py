"""A Maildir of one owner, its files, and changes made by other programs or a power failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mail.message import DeliveryId
from mailstore.maildir import Maildir

OWNER = "alice@example.test"
ID = DeliveryId("01JDXJ5Z8QABCDEFGHJKMNPQRS-0")
OTHER = DeliveryId("01JDXJ5Z8QABCDEFGHJKMNPQRT-0")
CONTENT = b"Subject: hello\r\n\r\nworld\r\n"


def make_maildir(tmp_path: Path, **more: Any) -> Maildir:
    return Maildir(tmp_path / "mail", "mx.example.test", **more)


def mailbox_path(tmp_path: Path) -> Path:
    return tmp_path / "mail" / "example.test" / "alice"


def files(tmp_path: Path, *folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((mailbox_path(tmp_path) / folder).glob("*"))]


def move_to_cur(tmp_path: Path) -> None:
    """Move new messages as Dovecot does when the owner opens the mailbox."""
    for file in files(tmp_path, "new"):
        file.rename(mailbox_path(tmp_path) / "cur" / f"{file.name}:2,FR")


def remove_journal(tmp_path: Path) -> None:
    """Remove the journal, as a power failure may do to pages that were not fsynced."""
    (mailbox_path(tmp_path) / "eilpost-delivered").unlink(missing_ok=True)
