"""deploy/eilpost.service: what systemd accepts, and what agrees with the settings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mail.service import EXIT_UNUSABLE
from mail.settings import Settings

UNIT = Path(__file__).resolve().parents[3] / "deploy" / "eilpost.service"


def _value(key: str) -> str:
    (value,) = re.findall(rf"^{key}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    return str(value)


def test_the_drain_ends_before_systemd_kills_the_process() -> None:
    assert int(_value("TimeoutStopSec")) > Settings().node.drain_timeout.total_seconds() + 10


def test_a_wrong_setting_is_not_retried() -> None:
    assert int(_value("RestartPreventExitStatus")) == EXIT_UNUSABLE


@pytest.mark.systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """With a program that exists in place of the installed one: systemd checks that it can be executed."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/eilpost/bin/eilpost", sys.executable))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
