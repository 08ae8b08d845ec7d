"""Process life cycle (ready, drain, second signal, failure) and log output."""

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
from mail.settings_section import SettingsError
from mail.spool import SpoolUnavailable
from mail.telemetry import REGISTRY

_DRAIN = timedelta(seconds=20)


class ScriptedRole:
    """A role that records its steps and can fail or drain slowly."""

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


async def test_process_is_ready_with_all_roles_and_drains_on_sigterm() -> None:
    events: list[str] = []
    health = Health()
    seen = []

    def on_ready() -> None:
        events.append("ready")
        seen.append((dict(health.roles), health.is_ready))
        os.kill(os.getpid(), signal.SIGTERM)

    roles = [ScriptedRole("a", events), ScriptedRole("b", events)]
    await run_roles(roles, _DRAIN, on_ready, support=[ScriptedRole("http", events, drain=0.01)], health=health)
    assert seen == [({"http": True, "a": True, "b": True}, True)]
    assert events.count("ready") == 1
    assert events.index("ready") > events.index("b starts")
    assert events.index("http drains") > max(events.index("a ends"), events.index("b ends"))
    assert events[-1] == "http ends"
    assert health.is_draining
    assert not health.is_ready
    assert health.roles == {"http": False, "a": False, "b": False}
    assert health.is_alive


async def test_second_signal_ends_the_drain() -> None:
    events: list[str] = []

    def on_ready() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)

    await run_roles([ScriptedRole("a", events, drain=1000)], timedelta(seconds=1000), on_ready)
    assert events[-1] == "a is cut"


async def test_drain_ends_at_its_time_limit() -> None:
    events: list[str] = []
    stop = asyncio.Event()
    roles = [ScriptedRole("slow", events, drain=1000), ScriptedRole("quick", events)]
    with structlog.testing.capture_logs() as lines:
        await run_roles(roles, timedelta(milliseconds=30), stop.set, stop=stop)
    assert [line["roles_cancelled"] for line in lines if line["event"] == "drain timed out"] == [["slow"]]
    assert events[-1] == "slow is cut"
    assert "quick ends" in events


async def test_stalled_event_loop_makes_the_process_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def beats() -> float:
        return REGISTRY.get_sample_value("eilpost_event_loop_lag_seconds_count") or 0.0

    monkeypatch.setattr(service, "_HEARTBEAT_SECONDS", 0.001)
    health, stop, before = Health(), asyncio.Event(), beats()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    await run_roles([ScriptedRole("a", [])], _DRAIN, health=health, stop=stop)
    assert beats() > before
    assert health.is_alive
    monkeypatch.setattr(service, "_STALLED_SECONDS", -1.0)  # as if the last heartbeat were long ago
    assert not health.is_alive


@pytest.mark.parametrize("fail", [ServiceError("port in use"), ZeroDivisionError("bug")])
async def test_failed_role_stops_all_roles_and_is_reported(fail: Exception) -> None:
    events: list[str] = []
    ready = []
    with pytest.raises(type(fail), match=str(fail)):
        await run_roles(
            [ScriptedRole("a", events), ScriptedRole("b", events, fail=fail)], _DRAIN, lambda: ready.append(1)
        )
    assert "a ends" in events
    assert not ready


async def test_role_that_returns_without_stop_is_a_bug() -> None:
    class Quits:
        name = "quits"

        async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
            ready()

    with pytest.raises(RuntimeError, match="quits ended unexpectedly"):
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
def test_error_gives_one_line_and_its_exit_status(
    error: Exception | None, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        if error is not None:
            raise error

    with structlog.testing.capture_logs() as lines:
        assert service.run(main) == status
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == (0 if error is None else 1)
    assert "Traceback" not in stderr
    if status == 70:
        assert "ZeroDivisionError" in stderr
        assert "test_service.py" in lines[0]["traceback"]
    elif error is not None:
        assert lines == []


class _Stream(io.StringIO):
    """A text stream over a bytes buffer, like stderr."""

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
    logging_setup.disable()
    structlog.reset_defaults()


def _lines(stream: _Stream) -> list[dict[str, Any]]:
    logging_setup.flush()
    return [orjson.loads(line) for line in stream.buffer.getvalue().splitlines()]


def test_json_log_line_contains_the_traceback(stream: _Stream) -> None:
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


def test_unprintable_characters_are_escaped_in_json_logs(stream: _Stream) -> None:
    logging_setup.configure("info", "json", stream)
    helo = "\x9b2J \x7f \u202eevil\u2069 \u200b ü 漢"
    structlog.get_logger().info("hello", helo=helo)
    (line,) = _lines(stream)
    assert line["helo"] == helo
    assert stream.buffer.getvalue().decode().rstrip("\n").isprintable()


def test_values_that_are_not_json_are_logged_as_text(stream: _Stream) -> None:
    """For example a file name that is not UTF-8 (PEP 383) or a number beyond 64 bits."""
    logging_setup.configure("info", "json", stream)
    structlog.get_logger().info("odd file", name=os.fsdecode(b"caf\xe9"), number=1 << 80)
    (line,) = _lines(stream)
    assert (line["event"], line["level"]) == ("odd file", "info")
    assert (line["name"], line["number"]) == ("caf\\udce9", str(1 << 80))


def test_libraries_are_logged_from_warning_on(stream: _Stream) -> None:
    logging_setup.configure("info", "json", stream)
    logging.getLogger("mail.log").info("command by command")
    logging.getLogger("asyncio").error("Task %s", "lost", exc_info=ValueError("x"))
    (line,) = _lines(stream)
    assert (line["event"], line["library"], line["level"]) == ("Task lost", "asyncio", "error")
    assert line["traceback"].startswith("ValueError: x")


def test_control_characters_are_escaped_in_text_logs(stream: _Stream) -> None:
    logging_setup.configure("debug", "auto", stream)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    logging_setup.configure("debug", "auto", stream)
    structlog.get_logger().debug("hello", helo="evil\x1b[2J\nline", spaced="a b", to=["a@x", "b@x\x1b"], none=None)
    logging_setup.flush()
    (line,) = stream.buffer.getvalue().decode().splitlines()
    assert "\x1b" not in line
    assert "evil" in line
    assert "spaced='a b'" in line
    assert line.endswith(" to=a@x,b@x\\x1b")
