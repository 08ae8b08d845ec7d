"""Log records of aiokafka are logged at debug only; commands log nothing."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator

import pytest
import structlog

from mail import logging_setup


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("aiokafka").setLevel(logging.NOTSET)
    logging_setup.disable()
    structlog.reset_defaults()


def _logged(level: str) -> str:
    out = io.TextIOWrapper(io.BytesIO())
    logging_setup.configure(level, "text", out)
    logging.getLogger("aiokafka.consumer.group_coordinator").error("Heartbeat failed: it is rebalancing")
    logging.getLogger("aiokafka").debug("Sending metadata request")
    logging.getLogger("somebody").error("it broke")
    logging_setup.flush()
    return out.buffer.getvalue().decode()


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_aiokafka_logs_only_at_debug(level: str) -> None:
    logged = _logged(level)
    assert "rebalancing" not in logged
    assert "it broke" in logged


def test_aiokafka_records_are_logged_at_debug() -> None:
    logged = _logged("debug")
    line = next(line for line in logged.splitlines() if "rebalancing" in line)
    assert " debug " in line
    assert "library=aiokafka.consumer.group_coordinator" in line
    assert "Sending metadata" not in logged  # a line for every request


def test_commands_log_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    logging_setup.disable()
    logging.getLogger("aiokafka").error("Unable connect")
    logging.getLogger("asyncio").error("Task exception was never retrieved")
    structlog.get_logger().error("log append failed")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format", ["auto", "json", "text"])
def test_closed_stderr_is_not_an_error(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    logging_setup.configure("info", format)
    structlog.get_logger().error("a line")
    logging.getLogger("somebody").error("it broke")


@pytest.mark.parametrize("format", ["json", "text"])
def test_log_line_that_cannot_be_written_is_dropped(format: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed, open("/dev/full", "w") as full:
        for out in (full, closed):
            logging_setup.configure("info", format, out)
            for number in range(3):
                structlog.get_logger().info("a line", number=number)
        with contextlib.suppress(OSError):
            full.close()
