"""The lock of a session: between processes, after kill -9, and when who asked for it has gone."""

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
from mailstore.session_lock import SessionLock

OWNER = "alice@example.test"
HOLDER = """
import asyncio, sys
from pathlib import Path
from mailstore.maildir import Maildir

async def main():
    async with Maildir(Path(sys.argv[1]), "mx").lock("alice@example.test"):
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_another_process_holds_it_until_it_dies(tmp_path: Path) -> None:
    maildir = Maildir(tmp_path, "mx.example.test")
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, str(tmp_path), stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        with pytest.raises(MailboxInUse):
            async with maildir.lock(OWNER):
                pass
        assert await maildir.append(OWNER, DeliveryId("A-0"), b"x\r\n") is True
    finally:
        holder.send_signal(signal.SIGKILL)
        await holder.wait()
    async with maildir.lock(OWNER):
        pass


async def test_a_session_that_is_cancelled_while_it_asks_leaves_nothing_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maildir, asked, go_on, taken = Maildir(tmp_path, "mx"), threading.Event(), threading.Event(), threading.Event()
    async with maildir.lock(OWNER):  # its directories are there: one look for the lock is enough
        pass
    take = SessionLock.acquire

    def slowly(lock: SessionLock) -> bool:
        asked.set()
        go_on.wait(10)
        try:
            return take(lock)
        finally:
            taken.set()

    async def session() -> None:
        async with maildir.lock(OWNER):
            pass

    monkeypatch.setattr(SessionLock, "acquire", slowly)
    task = asyncio.create_task(session())
    await asyncio.to_thread(asked.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await asyncio.to_thread(taken.wait, 10)
    monkeypatch.undo()
    async with maildir.lock(OWNER):
        pass


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "eilpost-session").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="not a plain file"):
        SessionLock(tmp_path).acquire()
    assert not (tmp_path / "elsewhere").exists()
