"""Maildir: exactly one message whatever step a crash or a full disk hits."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mailstore import delivery_journal as delivery_journal_module
from mailstore import flush as flush_module
from mailstore import listing as listing_module
from mailstore import mailbox_lock as mailbox_lock_module
from mailstore import maildir as maildir_module
from mailstore.mailboxes import MailboxUnavailable
from tests.support.builders.maildirs import (
    CONTENT,
    ID,
    OTHER,
    OWNER,
    files,
    mailbox_path,
    make_maildir,
    move_to_cur,
    remove_journal,
)


class Crash(BaseException):
    """The process is gone at this instant: no handler of ours sees it."""


class FaultyOs:
    """Stands in for `os`: counts the calls that change the disk, and breaks one of them."""

    STEPS = frozenset({"open", "write", "fsync", "link", "unlink", "pwrite", "ftruncate", "replace"})

    def __init__(self, step: int = -1, *, after: bool = False, error: BaseException | None = None) -> None:
        self.step = step
        self.after = after
        self.error = error or Crash()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.STEPS:
            return real

        def wrapped(*arguments: Any, **more: Any) -> Any:
            here = len(self.calls) == self.step
            self.calls.append(name)
            if here and not self.after:
                raise self.error
            try:
                return real(*arguments, **more)
            finally:
                if here:
                    raise self.error

        return wrapped


def break_os(patch: pytest.MonkeyPatch, faulty_os: FaultyOs) -> None:
    for module in (maildir_module, mailbox_lock_module, delivery_journal_module, flush_module, listing_module):
        patch.setattr(module, "os", faulty_os)


@contextmanager
def faulty_os_calls(faulty_os: FaultyOs) -> Iterator[FaultyOs]:
    with pytest.MonkeyPatch.context() as patch:
        break_os(patch, faulty_os)
        yield faulty_os


def count_steps(tmp_path: Path) -> list[str]:
    with faulty_os_calls(FaultyOs()) as saboteur:
        make_maildir(tmp_path).append_blocking(OWNER, ID, CONTENT, 10_000)
    shutil.rmtree(tmp_path / "mail")
    return saboteur.calls


def test_a_message_costs_two_flushes(tmp_path: Path) -> None:
    maildir = make_maildir(tmp_path)
    maildir.append_blocking(OWNER, OTHER, b"other", None)
    with faulty_os_calls(FaultyOs()) as saboteur:
        maildir.append_blocking(OWNER, ID, CONTENT, None)
    assert saboteur.calls.count("fsync") == 2
    assert saboteur.calls.index("fsync") < saboteur.calls.index("link")


def nothing(_tmp_path: Path) -> None:
    """The owner does nothing between crash and second try."""


def remove_journal_and_move(tmp_path: Path) -> None:
    remove_journal(tmp_path)
    move_to_cur(tmp_path)


def truncate_journal(tmp_path: Path) -> None:
    journal = mailbox_path(tmp_path) / "eilpost-delivered"
    if journal.exists():
        journal.write_bytes(journal.read_bytes()[:-3])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("meanwhile", "reboot"),
    [
        (nothing, False),
        (move_to_cur, False),
        (nothing, True),
        (move_to_cur, True),
        (remove_journal, True),
        (remove_journal_and_move, True),
        (truncate_journal, True),
    ],
)
@pytest.mark.parametrize("warm", [False, True], ids=["first-message", "later-message"])
def test_a_crash_at_any_step_and_a_second_keep_make_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
    meanwhile: Callable[[Path], None],
    reboot: bool,
    warm: bool,
) -> None:
    steps = count_steps(tmp_path)
    assert "link" in steps
    linked = 0
    for step in range(len(steps)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mailbox_lock_module, "boot_id", lambda: "boot-1")
            if warm:
                make_maildir(tmp_path).append_blocking(OWNER, OTHER, b"other", None)
            break_os(patch, FaultyOs(step, after=after))
            try:
                make_maildir(tmp_path).append_blocking(OWNER, ID, CONTENT, 10_000)
            except Crash:
                pass
            else:
                assert warm  # fewer steps than for a first message
                continue
        linked += any(ID in file.name for file in files(tmp_path, "new"))
        meanwhile(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mailbox_lock_module, "boot_id", lambda: "boot-2" if reboot else "boot-1")
            again = make_maildir(tmp_path)
            again.append_blocking(OWNER, ID, CONTENT, 10_000)
            assert again.append_blocking(OWNER, ID, CONTENT, 10_000) is False
        kept = [file for file in files(tmp_path, "new", "cur") if ID in file.name]
        assert [file.read_bytes() for file in kept] == [CONTENT], (step, steps[step])
        assert files(tmp_path, "tmp") == [], (step, steps[step])
        shutil.rmtree(tmp_path / "mail")
    assert linked >= 3  # the crash really came after the link in some of them


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
async def test_a_full_disk_at_any_step_leaves_no_debris_and_a_second_try_makes_one_message(
    tmp_path: Path, code: int, after: bool
) -> None:
    steps = count_steps(tmp_path)
    seen: set[str] = set()
    for step, name in enumerate(steps):
        if after and name == "open":
            continue  # an open that fails has opened nothing
        error = OSError(code, os.strerror(code), "somewhere")
        maildir = make_maildir(tmp_path)
        try:
            with faulty_os_calls(FaultyOs(step, after=after, error=error)):
                await maildir.append(OWNER, ID, CONTENT, 10_000)
        except MailboxUnavailable as unavailable:
            seen.add(str(unavailable).partition(": ")[2])
            if name != "unlink" and mailbox_path(tmp_path).exists():
                assert files(tmp_path, "tmp") == [], (step, name)
        else:
            assert len(files(tmp_path, "new")) == 1
        await maildir.append(OWNER, ID, CONTENT, 10_000)
        assert len(files(tmp_path, "new")) == 1, (step, name)
        move_to_cur(tmp_path)
        assert await make_maildir(tmp_path).append(OWNER, ID, CONTENT) is False
        assert len(files(tmp_path, "new", "cur")) == 1, (step, name)
        shutil.rmtree(tmp_path / "mail")
    assert seen == {os.strerror(code)}


async def test_a_read_only_root_is_an_unavailable_mailbox(tmp_path: Path) -> None:
    (tmp_path / "mail").write_text("a file where the directory should be")
    with pytest.raises(MailboxUnavailable, match="mail"):
        await make_maildir(tmp_path).append(OWNER, ID, CONTENT)
