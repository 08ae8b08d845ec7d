"""Runs the one box under cProfile, on CPU time, in every thread: `python -m tests.bench.profiled --config FILE`.

The statistics go to the file named by EILPOST_BENCH_PROFILE_TO when it ends; starting is not in them. Waiting costs no
CPU time and is not counted. The profiler itself makes small functions look dearer than they are.
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
    """The first event in a new thread: hand over to a profile of its own."""
    sys.setprofile(None)
    _here().enable()


def main() -> int:
    target = os.environ.pop("EILPOST_BENCH_PROFILE_TO")
    from eilpost import configuration, process

    if sys.version_info < (3, 12):  # from 3.12 on only one thread at a time can be profiled
        threading.setprofile(_begin)
    profile = _here()
    try:
        return process.run_all(configuration.load_plan(Path(sys.argv[-1])), on_ready=profile.enable)
    finally:
        profile.disable()
        statistics = pstats.Stats(*_profiles)
        statistics.dump_stats(target)


if __name__ == "__main__":
    sys.exit(main())
