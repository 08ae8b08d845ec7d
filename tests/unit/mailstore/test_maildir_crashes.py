"""Maildir: exactly one message after a crash or a full disk at any step."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mail import fsync as fsync_module
from mailstore import maildir as maildir_module
from mailstore.mailboxes import MailboxUnavailable
from mailstore.maildir import delivery_journal as delivery_journal_module
from mailstore.maildir import folders as folders_module
from mailstore.maildir import listing as listing_module
from mailstore.maildir import mailbox_lock as mailbox_lock_module
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

pytestmark = pytest.mark.slow


class Crash(BaseException):
    """The process dies here: a BaseException, so that no handler catches it."""


class FaultyOs:
    """Replaces `os`: records the calls that change the disk, and fails one of them."""

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
            is_step = len(self.calls) == self.step
            self.calls.append(name)
            if is_step and not self.after:
                raise self.error
            try:
                return real(*arguments, **more)
            finally:
                if is_step:
                    raise self.error

        return wrapped


def break_os(patch: pytest.MonkeyPatch, faulty_os: FaultyOs) -> None:
    for module in (
        maildir_module,
        mailbox_lock_module,
        delivery_journal_module,
        fsync_module,
        listing_module,
        folders_module,
    ):
        patch.setattr(module, "os", faulty_os)


@contextmanager
def faulty_os_calls(faulty_os: FaultyOs) -> Iterator[FaultyOs]:
    with pytest.MonkeyPatch.context() as patch:
        break_os(patch, faulty_os)
        yield faulty_os


async def count_steps(tmp_path: Path) -> list[str]:
    with faulty_os_calls(FaultyOs()) as recorded:
        await make_maildir(tmp_path).append(OWNER, ID, CONTENT, 10_000)
    shutil.rmtree(tmp_path / "mail")
    return recorded.calls


async def test_append_costs_two_fsyncs(tmp_path: Path) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, OTHER, b"other")
    with faulty_os_calls(FaultyOs()) as recorded:
        await maildir.append(OWNER, ID, CONTENT)
    assert recorded.calls.count("fsync") == 2
    assert recorded.calls.index("fsync") < recorded.calls.index("link")


def no_change(_tmp_path: Path) -> None:
    """No change between the crash and the second append."""


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
        (no_change, False),
        (move_to_cur, False),
        (no_change, True),
        (move_to_cur, True),
        (remove_journal, True),
        (remove_journal_and_move, True),
        (truncate_journal, True),
    ],
)
@pytest.mark.parametrize("later_message", [False, True], ids=["first-message", "later-message"])
async def test_crash_at_any_step_and_second_append_make_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
    meanwhile: Callable[[Path], None],
    reboot: bool,
    later_message: bool,
) -> None:
    steps = await count_steps(tmp_path)
    assert "link" in steps
    linked = 0
    for step in range(len(steps)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mailbox_lock_module, "boot_id", lambda: "boot-1")
            if later_message:
                await make_maildir(tmp_path).append(OWNER, OTHER, b"other")
            break_os(patch, FaultyOs(step, after=after))
            try:
                await make_maildir(tmp_path).append(OWNER, ID, CONTENT, 10_000)
            except Crash:
                pass
            else:
                assert later_message  # a later message has fewer steps
                continue
        linked += any(ID in file.name for file in files(tmp_path, "new"))
        meanwhile(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mailbox_lock_module, "boot_id", lambda: "boot-2" if reboot else "boot-1")
            again = make_maildir(tmp_path)
            await again.append(OWNER, ID, CONTENT, 10_000)
            assert await again.append(OWNER, ID, CONTENT, 10_000) is False
        stored = [file for file in files(tmp_path, "new", "cur") if ID in file.name]
        assert [file.read_bytes() for file in stored] == [CONTENT], (step, steps[step])
        assert files(tmp_path, "tmp") == [], (step, steps[step])
        shutil.rmtree(tmp_path / "mail")
    assert linked >= 3  # some crashes came after the link


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
async def test_disk_error_at_any_step_and_second_append_make_one_message(
    tmp_path: Path, code: int, after: bool
) -> None:
    steps = await count_steps(tmp_path)
    errors: set[str] = set()
    for step, name in enumerate(steps):
        if after and name == "open":
            continue  # a failed open opens nothing
        error = OSError(code, os.strerror(code), "somewhere")
        maildir = make_maildir(tmp_path)
        try:
            with faulty_os_calls(FaultyOs(step, after=after, error=error)):
                await maildir.append(OWNER, ID, CONTENT, 10_000)
        except MailboxUnavailable as unavailable:
            errors.add(str(unavailable).partition(": ")[2])
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
    assert errors == {os.strerror(code)}


async def test_unusable_root_is_mailbox_unavailable(tmp_path: Path) -> None:
    (tmp_path / "mail").write_text("a file where the directory should be")
    with pytest.raises(MailboxUnavailable, match="mail"):
        await make_maildir(tmp_path).append(OWNER, ID, CONTENT)
