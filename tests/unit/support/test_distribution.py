"""Distribution of the tests of `make test` over its worker processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.removal import ROOT

TWO_PROCESSES = shlex.split(re.findall(r"^TWO_PROCESSES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0])
TEST = """
import json
import os
import time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(3))
@pytest.mark.{marker}
def test_run(number, request):
    start = time.monotonic()
    time.sleep(0.2)
    result = os.getpid(), start, time.monotonic(), os.nice(0)
    Path(__file__).with_name(f"{marker}-{{start}}.json").write_text(json.dumps(result))
"""


@pytest.mark.slow
def test_files_with_real_parts_run_one_after_the_other_and_the_others_meanwhile(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"test_light_{number}.py").write_text(TEST.format(marker="helm"))
    for marker in ("docker", "kubernetes", "fault", "kafka"):
        (tmp_path / f"test_{marker}.py").write_text(TEST.format(marker=marker))
    command = [
        sys.executable,
        "-m",
        "pytest",
        *TWO_PROCESSES,
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.support.distribution",
    ]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout
    results = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    light = [result for name, result in results.items() if name.startswith("helm-")]
    exclusive = [result for name, result in results.items() if not name.startswith("helm-")]
    assert (len(light), len(exclusive)) == (12, 12)
    (process,) = {process for process, _, _, _ in exclusive}
    assert {niceness for _, _, _, niceness in exclusive} == {os.nice(0)}
    concurrent = [result for result in light if result[0] != process]
    assert min(start for _, start, _, _ in concurrent) < min(end for _, _, end, _ in exclusive)
    assert {niceness for _, _, _, niceness in concurrent} == {min(os.nice(0) + 10, 19)}
