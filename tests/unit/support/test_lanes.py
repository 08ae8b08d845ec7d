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
TEST = """
import os
import time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(3))
@pytest.mark.{marker}
def test_run(number, request):
    start = time.monotonic()
    time.sleep(0.2)
    Path(__file__).with_name(f"{{os.getpid()}}.{{start}}.{{time.monotonic()}}.{marker}").touch()
"""


@pytest.mark.slow
def test_files_with_real_parts_run_one_after_the_other_at_the_end(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"test_light_{number}.py").write_text(TEST.format(marker="helm"))
    for marker in ("docker", "kubernetes", "fault", "kafka"):
        (tmp_path / f"test_{marker}.py").write_text(TEST.format(marker=marker))
    command = [sys.executable, "-m", "pytest", *LANES, "-p", "no:cacheprovider", "-p", "tests.support.lanes"]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout
    runs = [re.findall(r"^(\d+)\.([\d.]+?)\.(\d+\.\d+)\.(\w+)$", path.name) for path in tmp_path.glob("*.*.*")]
    light = [(process, float(end)) for ((process, _, end, marker),) in runs if marker == "helm"]
    exclusive = [(process, float(start)) for ((process, start, _, marker),) in runs if marker != "helm"]
    assert (len(light), len(exclusive)) == (12, 12)
    assert len({process for process, _ in light}) == 2
    ((process,),) = [{process for process, _ in exclusive}]
    # The other process may still have its last light file.
    assert min(start for _, start in exclusive) >= max(end for worker, end in light if worker == process)
