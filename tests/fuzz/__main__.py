"""Fuzz all targets: `python -m tests.fuzz [--minutes N] [TARGET ...]`; `make fuzz` runs it for an hour.

As many targets as there are processors run at a time, each with an equal share of the time. What libFuzzer found to
reach new code stays in `var/fuzz/TARGET`, so that the next run starts with it. The status is 1 when an input
failed; it is printed as the line for `corpus/TARGET.txt`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import corpora
from tests.fuzz.targets import TARGETS

_ROOT = Path(__file__).parents[2]
_FOUND = _ROOT / "var" / "fuzz"
_INPUT_BYTES_MAX = 4096
_INPUT_SECONDS_MAX = 30  # an input that takes longer fails
_MEMORY_MB_MAX = 2048
_EXECUTIONS = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)


class Run(NamedTuple):
    """The result for one target. `failing`: the input that failed, None when there was none."""

    target: str
    executions: int
    failing: bytes | None
    output: str


def fuzz(target: str, seconds: int, folder: Path) -> Run:
    """Run a target with libFuzzer's folder `folder`."""
    corpora.write(target, folder)
    artifact = folder.parent / f"{target}.failed"
    artifact.unlink(missing_ok=True)
    options = (
        f"-max_total_time={seconds}", f"-max_len={_INPUT_BYTES_MAX}", f"-timeout={_INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={_MEMORY_MB_MAX}", f"-exact_artifact_path={artifact}", "-print_final_stats=1",
    )  # fmt: skip
    process = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run_target", target, str(folder), *options],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    executions = _EXECUTIONS.search(process.stdout)
    failing = artifact.read_bytes() if artifact.exists() else None
    if process.returncode != 0 and failing is None:
        raise RuntimeError(f"{target}: libFuzzer ended with status {process.returncode}:\n{process.stdout[-4000:]}")
    return Run(target, int(executions[1]) if executions else 0, failing, process.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"one of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=60, help="for all targets together (default: 60)")
    options = parser.parse_args(arguments)
    targets = options.targets or list(TARGETS)
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"unknown target {', '.join(sorted(unknown))}")
    at_a_time = min(os.cpu_count() or 1, len(targets))
    seconds = max(1, round(options.minutes * 60 * at_a_time / len(targets)))
    print(f"{len(targets)} targets, {at_a_time} at a time, {seconds} s each", flush=True)
    failed = False
    with ThreadPoolExecutor(at_a_time) as executor:
        for run in executor.map(lambda target: fuzz(target, seconds, _FOUND / target), targets):
            result = "ok" if run.failing is None else "FAILED"
            print(f"  {run.target:15} {run.executions:>12,} inputs  {result}", flush=True)
            if run.failing is not None:
                failed = True
                print(f"{run.output[-3000:]}\nadd this line to tests/fuzz/corpus/{run.target}.txt:\n{run.failing!r}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
