"""Doctor checks of an embedded log: damaged records, a lost file, permissions."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from eilpost import lost_log
from eilpost.doctor import embedded
from eilpost.doctor.finding import Finding, Level
from eilpost.doctor.machine import folder_finding
from mail.log import Damaged
from mail.log.embedded import check
from mail.log.embedded.lock import DirectoryLock
from mail.settings import LogSettings
from router.quarantine import NEVER_DUE, corrupt_entry
from tests.support.builders.records import NOON, accepted, attempted, dispatched, event, queue_entry
from tests.support.servers.embedded_log import running


async def look(path: Path, spool: Path | None = None) -> dict[str, Finding]:
    findings = await embedded.examine(path, LogSettings(min_free_disk=1), spool)
    return {finding.subject: finding for finding in findings}


async def fill(path: Path) -> None:
    async with running(path) as log:
        for number in range(3):
            for make in (accepted, attempted, dispatched, event, queue_entry):
                await log.append(make(number))


def execute(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("page_rows", [1, 500])
async def test_every_record_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_rows: int) -> None:
    monkeypatch.setattr(check, "_PAGE_ROWS", page_rows)
    path = tmp_path / "log.db"
    await fill(path)
    findings = await look(path)
    assert (findings["records"].level, findings["records"].text) == (Level.OK, "15 records of the log can be read")
    execute(
        path,
        "UPDATE entry SET frame = zeroblob(90) WHERE id = (SELECT min(id) FROM entry)",
        "UPDATE entry SET frame = 'text' WHERE id = (SELECT max(id) FROM entry)",
        "UPDATE body SET content = x'00' WHERE id = (SELECT max(id) FROM body)",
        "UPDATE pending SET frame = x'e1' WHERE key = (SELECT max(key) FROM pending)",
        "UPDATE event SET frame = 17 WHERE id = (SELECT min(id) FROM event)",
    )
    before = path.read_bytes()
    for _ in range(2):  # of a log that runs not, and of one that runs
        findings = await look(path)
        assert findings["records of accepted"].text.startswith("accepted, shard 0, offset 1: it does not begin")
        assert "its content is damaged" in findings["records of dispatched"].text
        assert "attempted, shard 0, offset " in findings["records of attempted"].text
        assert f"queue, shard 0, key {queue_entry(2).delivery.id}: " in findings["records of queue"].text
        assert [findings[f"records of {topic}"].level for topic in ("accepted", "queue", "events")] == [
            Level.FAIL,
            Level.FAIL,
            Level.WARN,
        ]
        assert "docs/kafka.md" in findings["records of accepted"].advice[1]
    assert path.read_bytes() == before
    async with running(path):
        assert findings.keys() == (await look(path)).keys()


async def test_a_record_of_a_newer_version_names_what_to_run(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await fill(path)
    version = "CAST(substr(frame, 1, 2) || x'09' || substr(frame, 4) AS BLOB)"
    execute(path, f"UPDATE entry SET frame = {version} WHERE id = (SELECT min(id) FROM entry)")
    finding = (await look(path))["records of accepted"]
    assert (finding.level, "run the newer version" in finding.advice[0]) == (Level.FAIL, True)


async def test_records_in_quarantine_are_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with running(path) as log:
        await log.append(corrupt_entry(Damaged("accepted", 0, 1, "", b"x", "no"), lambda _: True, NEVER_DUE, NOON))
    findings = await look(path)
    assert (findings["quarantine"].level, findings["quarantine"].text) == (
        Level.WARN,
        "damaged records in quarantine: 1",
    )
    assert findings["log"].level is Level.OK  # it is no delivery that waits


@pytest.mark.parametrize("is_empty", [True, False])
async def test_a_lost_log_is_a_failure(tmp_path: Path, is_empty: bool) -> None:
    path, spool = tmp_path / "log" / "log.db", tmp_path / "spool"
    (spool / "2026113022").mkdir(parents=True)
    path.parent.mkdir()
    if is_empty:
        path.touch()
    (spool / "2026113022" / "probe").write_bytes(bytes(100))  # as of the doctor
    assert not lost_log.has_content(spool)
    (spool / "2026113022" / "mail").write_bytes(bytes(5000))
    finding = (await look(path, spool))["log"]
    assert finding.level is Level.FAIL
    assert "queued mail may be missing" in finding.text
    assert finding.advice == (lost_log.ADVICE,)
    DirectoryLock(path).release()
    assert "its queued mail is missing" in (await look(path))["log"].text


async def test_advice_about_a_directory_without_write_permission_keeps_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.db"
    await fill(path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    finding = (await look(path))["log"]
    assert (finding.level, finding.text) == (Level.FAIL, f"{tmp_path} is not writable by this user")
    assert finding.advice == (f"make it writable for this user: {path} has the queued mail",)


async def test_a_file_in_place_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "mail").write_text("")
    for path in (tmp_path / "mail", tmp_path / "mail" / "example.test"):
        finding = folder_finding("mailboxes", path)
        assert finding is not None
        assert finding.text == f"{tmp_path / 'mail'} is a file, not a directory"
    assert "is a file, not a directory" in (await look(tmp_path / "mail" / "log.db"))["log"].text
