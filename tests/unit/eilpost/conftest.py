"""Fixtures of the tests of commands: a working directory with a configuration, a command, a log without a server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from eilpost import cli
from mail.log.embedded import EmbeddedLog
from mail.record import MessageAccepted, QueueEntry, WaitCause, Waiting
from mail.settings import LogSettings
from tests.support.builders import records as samples
from tests.support.clients.commands import Run
from tests.support.servers.eilpost_process import directory_toml


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a configuration."""
    monkeypatch.chdir(tmp_path)
    for name in ("EILPOST_CONFIG", "EILPOST_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "eilpost.toml").write_text('[node]\nhostname = "mx.example.test"\n')
    (tmp_path / "directory.toml").write_text(directory_toml())
    (tmp_path / "directory.toml").chmod(0o600)
    return tmp_path


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eilpost", *arguments])
        with pytest.raises(SystemExit) as system_exit:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(system_exit.value.code or 0), out, err

    yield call
    structlog.reset_defaults()  # a command's logging configuration must not reach the next test


@pytest.fixture
def log(home: Path) -> Path:
    """A log that no process has open, with one waiting delivery and its first event."""
    path = home / "var" / "log.db"

    async def fill() -> None:
        log = EmbeddedLog(path, LogSettings())
        await log.start()
        due = samples.NOON + timedelta(days=36500)
        await log.append(
            QueueEntry(samples.delivery(1), Waiting(due, WaitCause.DEFERRED, ""), samples.SPOOLED, 1, samples.LATER)
        )
        await log.append(samples.event(1, MessageAccepted(samples.message(1))))
        await log.close()

    path.parent.mkdir()
    asyncio.run(fill())
    return path
