"""Kernel statistics of process groups: CPU seconds, memory and disk flushes. Linux only.

Reads /proc and /sys only, so that measuring is cheap and needs no tracing.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType

import eilpost

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Stat:
    session: int
    own_ticks: int
    system_ticks: int  # the part spent in the kernel
    reaped_ticks: int


def _stat(pid: int, path: Path | None = None) -> _Stat | None:
    try:
        fields = (path or Path(f"/proc/{pid}/stat")).read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(int(fields[3]), int(fields[11]) + int(fields[12]), int(fields[12]), int(fields[13]) + int(fields[14]))


def session_of(leader: int) -> list[int]:
    """Processes of a session, including its leader."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            stat = _stat(int(name))
            if stat is not None and stat.session == leader:
                found.append(int(name))
    return found


def cpu_seconds(leader: int) -> float:
    """User and system time of a session: of its processes, and of those that its leader has reaped."""
    ticks = 0
    for pid in session_of(leader):
        stat = _stat(pid)
        if stat is not None:
            ticks += stat.own_ticks + (stat.reaped_ticks if pid == leader else 0)
    return ticks / _TICK


def own_seconds(pid: int) -> float:
    """User and system time of one process."""
    stat = _stat(pid)
    return stat.own_ticks / _TICK if stat is not None else 0.0


def busy_seconds() -> float:
    """User and system time of the whole machine since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / _TICK


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of a process by thread, user and system."""
    seconds: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        stat = _stat(int(task.name), task / "stat")
        if stat is not None:
            name = "main thread" if task.name == str(pid) else f"thread {int(task.name) - pid}"
            seconds[f"{name}, user"] = (stat.own_ticks - stat.system_ticks) / _TICK
            seconds[f"{name}, system"] = stat.system_ticks / _TICK
    return seconds


def resident_bytes(leader: int) -> int:
    """Memory of a session; shared pages are divided among their users (PSS)."""
    total = 0
    for pid in session_of(leader):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        total += int(found[1]) * 1024 if found else 0
    return total


def disk_flushes(path: Path) -> int | None:
    """Completed flush requests of the disk under `path`, of all processes; None if the kernel does not report them."""
    device = path.stat().st_dev
    try:
        fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    except OSError:
        return None
    return int(fields[15]) if len(fields) > 15 else None


class Highest:
    """Samples a number twice a second within a block and keeps the maximum."""

    def __init__(self, sample: Callable[[], int]) -> None:
        self._sample = sample
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.value = 0

    def _run(self) -> None:
        while not self._over.wait(0.5):
            self.value = max(self.value, self._sample())

    def __enter__(self) -> Highest:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.value = max(self.value, self._sample())


def description() -> dict[str, str]:
    """Machine and versions for the report."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    postfix = subprocess.run(["postconf", "-h", "-d", "mail_version"], capture_output=True, text=True).stdout.strip()
    temporary = os.path.realpath(tempfile.gettempdir())
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(len(where), kind) for where, kind in mounts if f"{temporary}/".startswith(where.rstrip("/") + "/")]
    filesystem = max(inside)[1] if inside else "unknown"
    return {
        "processors": f"{os.cpu_count()} x {model}",
        "memory": f"{memory:.0f} GiB",
        "system": f"Linux {platform.release()}, file system {filesystem}",
        "Python": platform.python_version(),
        "eilpost": eilpost.__version__,
        "uvloop": metadata.version("uvloop"),
        "Postfix": postfix,
    }
