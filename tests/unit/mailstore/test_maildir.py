"""Maildir: layout on disk, several processes, cached state and shared flushes."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mail.message import DeliveryId
from mailstore import maildir as maildir_module
from mailstore.mailboxes import MailboxUnavailable
from mailstore.maildir import flush as flush_module
from mailstore.maildir import mailbox_lock as mailbox_lock_module
from mailstore.maildir import reader as maildir_reader_module
from tests.support.builders.maildirs import CONTENT, ID, OTHER, OWNER, files, mailbox_path, make_maildir


async def test_layout_is_a_maildir_with_private_modes(tmp_path: Path) -> None:
    os.umask(os.umask(0o022))
    await make_maildir(tmp_path).append(OWNER, ID, CONTENT)
    (file,) = files(tmp_path, "new", "cur", "tmp")
    assert file.parent.name == "new"
    assert file.read_bytes() == CONTENT
    assert f"_{ID}." in file.name
    assert file.name.endswith(f".mx.example.test,S={len(CONTENT)},W={len(CONTENT)}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_nlink == 1
    for folder in (mailbox_path(tmp_path), *(mailbox_path(tmp_path) / name for name in ("tmp", "new", "cur"))):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_bare_lf_counts_twice_in_w(tmp_path: Path) -> None:
    await make_maildir(tmp_path).append(OWNER, ID, b"a\nb\r\nc\n")
    (file,) = files(tmp_path, "new")
    assert file.name.endswith(",S=7,W=9")


def test_two_processes_append_each_id_once(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path; from mailstore.maildir import Maildir\n"
        "async def main():\n"
        "    maildir = Maildir(Path(sys.argv[1]), 'mx')\n"
        "    print(sum([await maildir.append('alice@example.test', f'ID{n}-0', b'x') for n in range(60)]))\n"
        "asyncio.run(main())\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "mail")], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    counts = [int(process.communicate(timeout=60)[0]) for process in started]
    assert sum(counts) == 60
    assert len(files(tmp_path, "new")) == 60
    assert files(tmp_path, "tmp") == []


async def test_mailbox_lock_time_out_is_mailbox_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, OTHER, CONTENT)
    monkeypatch.setattr("mailstore.maildir.limiter.LOCK_SECONDS", 0.05)
    holder = os.open(mailbox_path(tmp_path) / "eilpost-lock", os.O_WRONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(MailboxUnavailable, match="lock"):
        await maildir.append(OWNER, ID, CONTENT)
    assert files(tmp_path, "tmp") == []
    os.close(holder)
    assert await maildir.append(OWNER, ID, CONTENT) is True


async def test_append_to_a_cached_mailbox_does_not_list_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maildir = make_maildir(tmp_path)
    await maildir.append(OWNER, ID, CONTENT, 10_000)
    monkeypatch.setattr(maildir_module, "list_files", lambda *_a, **_m: pytest.fail("the mailbox was listed"))
    assert await maildir.append(OWNER, OTHER, CONTENT, 10_000) is True
    assert await maildir.append(OWNER, ID, CONTENT, 10_000) is False


async def test_cache_eviction_does_not_change_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox_lock_module, "MAILBOXES_MAX", 2)
    monkeypatch.setattr(maildir_reader_module, "FILENAMES_MAX", 1)
    maildir = make_maildir(tmp_path)
    owners = [f"user{n}@example.test" for n in range(5)]
    for owner in owners:
        assert await maildir.append(owner, ID, owner.encode()) is True
    for owner in owners:
        assert len(await maildir.messages(owner)) == 1
        assert await maildir.append(owner, ID, b"again") is False
    for owner in owners:
        assert await maildir.read(owner, ID) == owner.encode()
    assert len(maildir._mailboxes) == 2


async def test_mailbox_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox_lock_module, "IDS_MAX", 20)
    monkeypatch.setattr(mailbox_lock_module, "CHECK_EVERY", 1)
    maildir = make_maildir(tmp_path)
    for owner in (OWNER, "bob@example.test"):
        for number in range(15):
            await maildir.append(owner, DeliveryId(f"N{number}-0"), b"x")
    assert maildir._mailboxes.ids <= 21
    assert [await maildir.append(OWNER, DeliveryId(f"N{number}-0"), b"x") for number in range(15)] == [False] * 15


def test_flush_is_shared_only_by_calls_before_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes: list[int] = []
    first_runs, proceed = threading.Event(), threading.Event()

    def slow_flush(_path: Path) -> None:
        flushes.append(len(flushes))
        if len(flushes) == 1:
            first_runs.set()
            assert proceed.wait(10)

    monkeypatch.setattr(flush_module, "fsync_directory", slow_flush)
    flush = flush_module.SharedFlush(tmp_path)
    threads = [threading.Thread(target=flush.flush) for _ in range(6)]
    threads[0].start()
    assert first_runs.wait(10)
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 10
    while flush._requested < 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    proceed.set()
    for thread in threads:
        thread.join(10)
    assert len(flushes) == 2  # the first call, and one flush for the five calls during it
