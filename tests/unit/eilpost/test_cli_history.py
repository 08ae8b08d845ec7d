"""`eilpost queue` and `eilpost trace` without a server, and without reachable brokers."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from eilpost import tenants
from mail.log import Damaged, LogUnavailable
from mail.log.queue_summary import QueueSummary
from mail.message import QueueId
from mail.record import Event
from router.quarantine import NEVER_DUE, corrupt_entry
from tests.support.builders import records as samples
from tests.support.clients.commands import Run, commands, one_line
from tests.support.servers.eilpost_process import EILPOST
from tests.support.servers.embedded_log import running

QUEUE_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class UnavailableHistory:
    async def summarize_queue(self, summary: QueueSummary) -> None:
        raise LogUnavailable("kafka://127.0.0.1:1: the brokers did not answer in time")

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        raise LogUnavailable("kafka://127.0.0.1:1: the brokers did not answer in time")
        yield


@pytest.fixture
def run_without_brokers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    monkeypatch.setattr(tenants, "open_history", lambda _plan: UnavailableHistory())
    with commands(tmp_path, monkeypatch, capsys) as call:
        yield call


@pytest.mark.parametrize("command", [("queue",), ("trace", QUEUE_ID)])
def test_unreachable_log_is_one_line(run_without_brokers: Run, command: tuple[str, ...]) -> None:
    status, out, err = run_without_brokers(*command, log={"url": "kafka://127.0.0.1:1"})
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "did not answer in time: try again in ten seconds, or run `eilpost doctor`" in err


@pytest.mark.slow
def test_trace_refuses_an_invalid_queue_id_and_a_missing_log(run: Run, home: Path) -> None:
    for wrong in ("nonsense", "8" * 26, "Z" * 26, samples.queue_id(9) + "X"):
        status, _, err = run("trace", wrong)
        assert (status, f"{wrong!r} is not a queue id" in one_line(err)) == (2, True)
    status, _, err = run("trace", samples.queue_id(9))
    assert status == 2
    assert str(home / "var/log.db") in one_line(err)


@pytest.mark.slow
def test_queue_and_trace_read_a_log_without_a_server(run: Run, log: Path) -> None:
    status, out, err = run("queue")
    assert (status, samples.delivery(1).id in out, "451 4.3.0 Try again later" in out) == (0, True, True)
    assert f"no server is running on the log at {log} (configuration file: eilpost.toml): " in one_line(err)
    [line] = json.loads(run("queue", "--json")[1])
    assert (line["attempts"], line["state"], line["sender"]) == (1, "deferred", str(samples.BOB))
    site = samples.delivery(1).route.site_name
    [row] = json.loads(run("queue", "--top", "3", "--json")[1])
    assert (row["site"], row["state"], row["recipients"]) == (site, "deferred", 1)
    out = run("queue", "--top", "3")[1]
    assert (row["site"] in out, samples.delivery(1).id in out) == (True, False)
    shown = samples.delivery(1).id
    status, out, _ = run("queue", "--after", shown.lower())
    assert (status, shown in out, out.splitlines()[-1].split()[:2]) == (0, False, ["all", "1"])
    assert json.loads(run("queue", "--after", samples.queue_id(0), "--json")[1]) != []
    status, _, err = run("queue", "--after", "8" * 26 + "-1")
    assert (status, "--after '8888" in one_line(err)) == (2, True)
    status, out, _ = run("trace", samples.queue_id(1).lower())
    assert (status, "queued, now" in out) == (0, True)
    assert json.loads(run("trace", samples.queue_id(1), "--json")[1])["events"][0]["event"] == "accepted"
    status, _, err = run("trace", samples.queue_id(7))
    assert (status, "no such message" in one_line(err)) == (1, True)


@pytest.mark.slow
def test_bytes_of_a_corrupt_record_are_written(run: Run, home: Path, log: Path) -> None:
    damaged = Damaged("accepted", 0, 17, samples.queue_id(3), b"\xe1P\0 bytes", "it is damaged (checksum)")
    entry = corrupt_entry(damaged, lambda _: True, NEVER_DUE, samples.NOON)

    async def fill() -> None:
        async with running(log) as opened:
            await opened.append(entry)

    asyncio.run(fill())
    assert entry.delivery.id == f"{samples.queue_id(3)}-accepted-17"
    _, out, _ = run("queue")
    assert "damaged record of the log" in out
    assert "corrupt: accepted, shard 0, offset 17: it is damaged (checksum)" in out
    status, _, err = run("queue", "--record", samples.delivery(1).id)
    assert (status, "no such record in the state corrupt" in one_line(err)) == (1, True)
    command = [str(EILPOST), "queue", "--record", entry.delivery.id.replace("01KJ", "01kj")]
    done = subprocess.run(command, cwd=home, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\xe1P\0 bytes", b"")
