"""Lanes of `make test`: which tests share a worker process."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.removal import ROOT

LANES = shlex.split(re.findall(r"^LANES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0])
# Each test waits for the other file's, so that both worker processes are needed.
TEST = """
import os
import time
from pathlib import Path
import pytest

FOLDER = Path(__file__).parent

@pytest.mark.parametrize("number", range(3))
@pytest.mark.{marker}
def test_run(number, request):
    (FOLDER / f"{{os.getpid()}}.{marker}").touch()
    end = time.monotonic() + 30
    while not list(FOLDER.glob("*.{other}")) and time.monotonic() < end:
        time.sleep(0.05)
"""


@pytest.mark.slow
def test_long_lanes_run_in_two_processes(tmp_path: Path) -> None:
    for name, marker, other in (
        ("first", "docker", "fault"),
        ("second", "kubernetes", "fault"),
        ("third", "fault", "docker"),
        ("fourth", "kafka_cluster", "docker"),
    ):
        (tmp_path / f"test_{name}.py").write_text(TEST.format(marker=marker, other=other))
    command = [sys.executable, "-m", "pytest", *LANES, "-p", "no:cacheprovider", "-p", "tests.support.lanes"]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout
    processes = {
        marker: {path.stem for path in tmp_path.glob(f"*.{marker}")}
        for marker in ("docker", "kubernetes", "fault", "kafka_cluster")
    }
    assert processes["docker"] == processes["kubernetes"]
    assert processes["fault"] == processes["kafka_cluster"]
    assert len(processes["docker"]) == len(processes["fault"]) == 1
    assert processes["docker"] != processes["fault"]
