"""`eilpost queue` and `trace` without reachable brokers: one line with the remedy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from eilpost import tenants
from mail.log import LogUnavailable
from mail.message import QueueId
from mail.record import Event, Pending
from tests.support.clients.commands import Run, commands

QUEUE_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class UnavailableHistory:
    async def pending_deliveries(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        raise LogUnavailable("kafka://127.0.0.1:1: the brokers did not answer in time")
        yield

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        raise LogUnavailable("kafka://127.0.0.1:1: the brokers did not answer in time")
        yield


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    monkeypatch.setattr(tenants, "open_history", lambda _plan: UnavailableHistory())
    with commands(tmp_path, monkeypatch, capsys) as call:
        yield call


@pytest.mark.parametrize("command", [("queue",), ("trace", QUEUE_ID)])
def test_unreachable_log_is_one_line(run: Run, command: tuple[str, ...]) -> None:
    status, out, err = run(*command, log={"url": "kafka://127.0.0.1:1"})
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "did not answer in time: try again in ten seconds, or run `eilpost doctor`" in err
