"""Session lock: between processes, after kill -9, and after cancellation."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mail.message import DeliveryId
from mailstore.mailboxes import MailboxInUse
from mailstore.maildir import Maildir
from mailstore.maildir.session_lock import SessionLock

OWNER = "alice@example.test"
HOLDER = """
import asyncio, sys
from pathlib import Path
from mailstore.maildir import Maildir

async def main():
    async with Maildir(Path(sys.argv[1]), "mx").session_lock("alice@example.test"):
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_session_lock_of_another_process_ends_with_it(tmp_path: Path) -> None:
    maildir = Maildir(tmp_path, "mx.example.test")
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, str(tmp_path), stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        with pytest.raises(MailboxInUse):
            async with maildir.session_lock(OWNER):
                pass
        assert await maildir.append(OWNER, DeliveryId("A-0"), b"x\r\n") is True
    finally:
        holder.send_signal(signal.SIGKILL)
        await holder.wait()
    async with maildir.session_lock(OWNER):
        pass


async def test_cancelled_acquire_releases_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maildir, started, proceed, finished = (
        Maildir(tmp_path, "mx"),
        threading.Event(),
        threading.Event(),
        threading.Event(),
    )
    async with maildir.session_lock(OWNER):  # creates the directories, so that one acquire is enough
        pass
    acquire = SessionLock.acquire

    def slow_acquire(lock: SessionLock) -> bool:
        started.set()
        proceed.wait(10)
        try:
            return acquire(lock)
        finally:
            finished.set()

    async def session() -> None:
        async with maildir.session_lock(OWNER):
            pass

    monkeypatch.setattr(SessionLock, "acquire", slow_acquire)
    task = asyncio.create_task(session())
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proceed.set()
    await asyncio.to_thread(finished.wait, 10)
    monkeypatch.undo()
    async with maildir.session_lock(OWNER):
        pass


def test_symlink_is_not_a_lock_file(tmp_path: Path) -> None:
    (tmp_path / "eilpost-session").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="not a regular file"):
        SessionLock(tmp_path).acquire()
    assert not (tmp_path / "elsewhere").exists()
