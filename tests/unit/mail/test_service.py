"""The life of a process: ready, drained, hurried, failed; and what its logs look like."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import orjson
import pytest
import structlog

from mail import logging_setup, service
from mail.directory import DirectoryUnusable
from mail.log import LogUnusable
from mail.service import Health, ServiceError, run_roles
from mail.settings import SettingsError
from mail.spool import SpoolUnavailable
from mail.telemetry import REGISTRY

_DRAIN = timedelta(seconds=20)


class ScriptedRole:
    """A role that does as it is told and writes down when."""

    def __init__(self, name: str, events: list[str], *, fail: BaseException | None = None, drain: float = 0) -> None:
        self.name = name
        self._events, self._fail, self._drain = events, fail, drain

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        self._events.append(f"{self.name} starts")
        await asyncio.sleep(0)
        if self._fail is not None:
            raise self._fail
        ready()
        await stop.wait()
        self._events.append(f"{self.name} drains")
        try:
            await asyncio.sleep(self._drain)
        except asyncio.CancelledError:
            self._events.append(f"{self.name} is cut")
            raise
        self._events.append(f"{self.name} ends")


async def test_ready_when_all_are_and_drained_on_sigterm() -> None:
    story: list[str] = []
    health = Health()
    seen = []

    def on_ready() -> None:
        story.append("ready")
        seen.append((dict(health.roles), health.is_ready))
        os.kill(os.getpid(), signal.SIGTERM)

    roles = [ScriptedRole("a", story), ScriptedRole("b", story)]
    await run_roles(roles, _DRAIN, on_ready, support=[ScriptedRole("http", story, drain=0.01)], health=health)
    assert seen == [({"http": True, "a": True, "b": True}, True)]
    assert story.count("ready") == 1
    assert story.index("ready") > story.index("b starts")
    assert story.index("http drains") > max(story.index("a ends"), story.index("b ends"))
    assert story[-1] == "http ends"
    assert health.is_draining
    assert not health.is_ready
    assert health.roles == {"http": False, "a": False, "b": False}
    assert health.is_alive


async def test_a_second_signal_ends_at_once() -> None:
    story: list[str] = []

    def on_ready() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)

    await run_roles([ScriptedRole("a", story, drain=1000)], timedelta(seconds=1000), on_ready)
    assert story[-1] == "a is cut"


async def test_a_drain_has_an_end() -> None:
    story: list[str] = []
    stop = asyncio.Event()
    roles = [ScriptedRole("slow", story, drain=1000), ScriptedRole("quick", story)]
    await run_roles(roles, timedelta(milliseconds=30), stop.set, stop=stop)
    assert story[-1] == "slow is cut"
    assert "quick ends" in story


async def test_the_pulse_of_the_loop_is_felt_and_its_absence_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def beats() -> float:
        return REGISTRY.get_sample_value("eilpost_event_loop_lag_seconds_count") or 0.0

    monkeypatch.setattr(service, "_HEARTBEAT_SECONDS", 0.001)
    health, stop, before = Health(), asyncio.Event(), beats()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    await run_roles([ScriptedRole("a", [])], _DRAIN, health=health, stop=stop)
    assert beats() > before
    assert health.is_alive
    monkeypatch.setattr(service, "_STALLED_SECONDS", -1.0)  # as if the last beat were long ago
    assert not health.is_alive


@pytest.mark.parametrize("fail", [ServiceError("port in use"), ZeroDivisionError("bug")])
async def test_a_role_that_fails_ends_all_and_is_told(fail: Exception) -> None:
    story: list[str] = []
    ready = []
    with pytest.raises(type(fail), match=str(fail)):
        await run_roles(
            [ScriptedRole("a", story), ScriptedRole("b", story, fail=fail)], _DRAIN, lambda: ready.append(1)
        )
    assert "a ends" in story
    assert not ready


async def test_a_role_that_ends_by_itself_is_a_failure() -> None:
    class Quits:
        name = "quits"

        async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
            ready()

    with pytest.raises(ServiceError, match="quits ended unexpectedly"):
        await run_roles([Quits()], _DRAIN)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (ServiceError("127.0.0.1:25 is in use"), 2),
        (LogUnusable("log.db is no log"), 2),
        (DirectoryUnusable("d.toml: users"), 2),
        (SettingsError("e.toml: log.url"), 2),
        (SpoolUnavailable("cannot open"), 2),
        (ExceptionGroup("several", [ServiceError("the first"), ValueError("x")]), 2),
        (ZeroDivisionError("a\nbug"), 70),
    ],
)
def test_the_exit_status_and_its_one_line(
    error: Exception | None, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        if error is not None:
            raise error

    with structlog.testing.capture_logs() as lines:
        assert service.run(main) == status
    said = capsys.readouterr().err
    assert said.count("\n") == (0 if error is None else 1)
    assert "Traceback" not in said
    if status == 70:
        assert "ZeroDivisionError" in said
        assert "test_service.py" in lines[0]["traceback"]
    elif error is not None:
        assert lines == []


class _Stream(io.StringIO):
    """A text stream with bytes below, as stderr is."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = io.BytesIO()


@pytest.fixture
def stream() -> Iterator[_Stream]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield _Stream()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(stream: _Stream) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in stream.buffer.getvalue().splitlines()]


def test_a_line_is_json_with_its_traceback_inside(stream: _Stream) -> None:
    logging_setup.configure("info", "json", stream)
    log = structlog.get_logger()
    log.debug("unseen")
    log.info("accepted", queue_id="Q", size=3, odd=b"\xff", text="a\nb", helo=None)
    try:
        int("line\nbreak")
    except ValueError:
        log.exception("failed")
    accepted, failed = _lines(stream)
    assert (accepted["event"], accepted["level"], accepted["queue_id"], accepted["size"]) == (
        "accepted", "info", "Q", 3,
    )  # fmt: skip
    assert accepted["time"].endswith("Z")
    assert "helo" not in accepted
    assert failed["level"] == "error"
    assert failed["traceback"].startswith("ValueError: invalid literal")
    assert "\n" not in failed["traceback"]


def test_a_line_that_is_no_json_is_written_all_the_same(stream: _Stream) -> None:
    """A file name that is not UTF-8 (PEP 383), a number of too many digits: a log line never breaks its writer."""
    logging_setup.configure("info", "json", stream)
    structlog.get_logger().info("odd file", name=os.fsdecode(b"caf\xe9"), number=1 << 80)
    (line,) = _lines(stream)
    assert (line["event"], line["level"]) == ("odd file", "info")
    assert (line["name"], line["number"]) == ("caf\\udce9", str(1 << 80))


def test_libraries_log_the_same_way_from_warning_on(stream: _Stream) -> None:
    logging_setup.configure("info", "json", stream)
    logging.getLogger("mail.log").info("command by command")
    logging.getLogger("asyncio").error("Task %s", "lost", exc_info=ValueError("x"))
    (line,) = _lines(stream)
    assert (line["event"], line["library"], line["level"]) == ("Task lost", "asyncio", "error")
    assert line["traceback"].startswith("ValueError: x")


def test_text_cannot_move_the_cursor(stream: _Stream) -> None:
    logging_setup.configure("debug", "auto", stream)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    logging_setup.configure("debug", "auto", stream)
    structlog.get_logger().debug("hello", helo="evil\x1b[2J\nline", spaced="a b", to=["a@x", "b@x\x1b"], none=None)
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert "evil" in line
    assert "spaced='a b'" in line
    assert line.endswith(" to=a@x,b@x\\x1b")
