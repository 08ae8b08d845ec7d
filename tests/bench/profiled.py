"""Runs one process with all roles under cProfile in every thread: `python -m tests.bench.profiled --config FILE`.

The statistics are written to the file EILPOST_BENCH_PROFILE_TO at its end and exclude its start. They count CPU time,
so waiting costs nothing. The profiler's overhead exaggerates small functions.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

_profiles: list[cProfile.Profile] = []


def _here() -> cProfile.Profile:
    profile = cProfile.Profile(time.thread_time)
    _profiles.append(profile)
    return profile


def _begin(_frame: FrameType, _event: str, _argument: Any) -> None:
    """First event in a new thread: install a profiler for the thread."""
    sys.setprofile(None)
    _here().enable()


def main() -> int:
    target = os.environ.pop("EILPOST_BENCH_PROFILE_TO")
    from eilpost import configuration, process

    if sys.version_info < (3, 12):  # from 3.12 on only one thread at a time can be profiled
        threading.setprofile(_begin)
    profile = _here()
    try:
        return process.run(configuration.load_process_config(Path(sys.argv[-1])), on_ready=profile.enable)
    finally:
        profile.disable()
        statistics = pstats.Stats(*_profiles)
        statistics.dump_stats(target)


if __name__ == "__main__":
    sys.exit(main())
