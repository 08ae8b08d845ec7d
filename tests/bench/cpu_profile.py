"""CPU profile of a message by thread, package and function: one process with all roles under load and cProfile.

The cost of C functions is charged to the calling Python function, so that the list names code that can be changed. The
event loop's own system calls and the kernel's TCP are in no Python function: the threads' times include them, the list
does not.
"""

from __future__ import annotations

import os
import pstats
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.bench import machine
from tests.bench.load import CountingSink, Scenario, drive
from tests.bench.servers import EilpostServer

ROOT = Path(__file__).parents[2]
TOP = 45


def run(*, messages: int, size_bytes: int, reused: bool) -> int:
    scenario = Scenario(size_bytes, reused, messages)
    with CountingSink() as sink:
        print(f"{scenario.name}, {messages} messages\n\nWithout a profiler, by thread (ms CPU a message):")
        server = EilpostServer(sink.port)
        try:
            drive(server, sink, Scenario(size_bytes, reused, 300))
            before = machine.thread_seconds(server.leader)
            drive(server, sink, scenario)
            after = machine.thread_seconds(server.leader)
        finally:
            server.stop()
        spent = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
            if seconds * 1000 / messages >= 0.001:
                print(f"  {seconds * 1000 / messages:7.3f}  {name}")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "profile"
            os.environ["EILPOST_BENCH_PROFILE_TO"] = str(target)
            command = (sys.executable, "-m", "tests.bench.profiled")
            server = EilpostServer(sink.port, command=command)
            try:
                drive(server, sink, scenario)
            finally:
                server.stop()
            show(target, messages)
    return 0


def show(target: Path, messages: int) -> None:
    """Print the aggregated statistics: microseconds of profiled CPU time per message."""
    functions: dict[tuple[str, int, str], float] = defaultdict(float)
    calls: dict[tuple[str, int, str], int] = defaultdict(int)
    stats: dict[Any, Any] = pstats.Stats(str(target)).stats  # type: ignore[attr-defined]
    for function, (_primitive, count, own, _total, callers) in stats.items():
        if function[0] == "~" and callers:
            for caller, (_p, _c, part, _t) in callers.items():
                functions[caller] += part
        else:
            functions[function] += own
            calls[function] += count
    for function in [each for each in functions if each[2] == "_worker"]:
        del functions[function]  # an unfinished wait of a thread, measured with the clock of another thread
    packages: dict[str, float] = defaultdict(float)
    for function, seconds in functions.items():
        packages[_package(function)] += seconds
    total = sum(functions.values())
    print(f"\nUnder the profiler ({total * 1e6 / messages:.0f} us CPU a message), by package (us a message):")
    for package, seconds in sorted(packages.items(), key=lambda item: -item[1])[:20]:
        print(f"  {seconds * 1e6 / messages:7.1f}  {seconds / total:5.1%}  {package}")
    print("\nBy function, C functions charged to their callers (us a message, calls a message):")
    for function, seconds in sorted(functions.items(), key=lambda item: -item[1])[:TOP]:
        name = f"{_short(function[0])}:{function[1]} {function[2]}"
        print(f"  {seconds * 1e6 / messages:7.1f} {calls[function] / messages:7.1f}  {name}")


def _short(file: str) -> str:
    if file.startswith(str(ROOT) + "/") and "site-packages" not in file:
        return file[len(str(ROOT)) + 1 :]
    for folder in ("site-packages/", "lib/python3"):
        if folder in file:
            return (
                file.partition(folder)[2].partition("/")[2] if folder != "site-packages/" else file.partition(folder)[2]
            )
    return file


def _package(function: tuple[str, int, str]) -> str:
    file = function[0]
    if file == "~":
        return f"uvloop and C ({function[2][:60]})"
    short = _short(file)
    if file.startswith(str(ROOT) + "/") and "site-packages" not in file:
        parts = short.split("/")
        return ".".join(parts[:2]).removesuffix(".py") if parts[0] == "mail" else parts[0]
    if "site-packages" in file:
        return short.split("/")[0]
    return f"python: {short.split('/')[0]}"
