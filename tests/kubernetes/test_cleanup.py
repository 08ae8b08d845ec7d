"""The test cluster leaves nothing on the machine, whatever ends its run."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.interrupted import SIGNALS, InterruptedRun, until
from tests.support.kubernetes.namespaces import HOST_SETTINGS, PREFIX, remove_stale
from tests.support.removal import cgroups

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(300)]

TEST = """
from tests.support.interrupted import wait
from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.manifests import pause_pod

def test_cluster():
    with Kubernetes() as cluster:
        cluster.apply([pause_pod("waiting")])
        cluster.kubectl("wait", "--for=condition=Ready", "pod/waiting", "--timeout=30s")
        wait(str(cluster.folder), cluster.namespaces.pid, cluster.namespaces.guardian_pid)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[InterruptedRun]:
    with InterruptedRun(tmp_path, TEST) as one:
        yield one


def _settings() -> dict[str, str]:
    return {name: Path("/proc/sys", name).read_text() for name in HOST_SETTINGS}


def _in_namespaces(found: dict[str, int]) -> list[str]:
    """Processes of the machine in one of these namespaces."""
    members = []
    for process in psutil.process_iter(["name"]):
        for name, inode in found.items():
            try:
                if os.stat(f"/proc/{process.pid}/ns/{name}").st_ino == inode:
                    members.append(f"{process.info['name']} in {name}")
            except OSError:
                continue
    return members


def _left(folder: Path, namespaces: dict[str, int]) -> dict[str, Any]:
    return {
        "folders": [str(folder)] if folder.exists() else [],
        "cgroups": [str(cgroup) for cgroup in cgroups(folder.name) if cgroup.exists()],
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if folder.name in line],
        "processes": _in_namespaces(namespaces),
        "network namespaces": [str(path) for path in Path("/run/netns").glob("cni-*")],
        "logs": [str(path) for path in Path("/var/log/containers").glob("waiting*")],
    }


NOTHING: dict[str, Any] = {
    name: [] for name in ("folders", "cgroups", "mounts", "processes", "network namespaces", "logs")
}


def _begin(run: InterruptedRun) -> tuple[Path, dict[str, int], int]:
    folder, first, guardian = run.ready()
    namespaces = {name: os.stat(f"/proc/{first}/ns/{name}").st_ino for name in ("net", "pid", "mnt")}
    assert len(_in_namespaces(namespaces)) > 20
    assert all(cgroup.exists() for cgroup in cgroups(Path(folder).name))
    return Path(folder), namespaces, guardian


@SIGNALS
def test_ended_run_leaves_nothing(run: InterruptedRun, number: signal.Signals) -> None:
    before = _settings()
    folder, namespaces, guardian = _begin(run)
    run.end(number)
    until(lambda: not psutil.pid_exists(guardian), seconds=90)
    assert _left(folder, namespaces) == NOTHING
    assert _settings() == before


def test_next_run_cleans_up_after_a_killed_guardian(run: InterruptedRun) -> None:
    folder, namespaces, guardian = _begin(run)
    os.kill(guardian, signal.SIGKILL)
    run.end(signal.SIGKILL)
    assert folder.exists()
    assert folder.name.startswith(PREFIX)
    until(lambda: not _in_namespaces(namespaces))  # the kernel is still killing them; one holds the lock
    remove_stale(Path(tempfile.gettempdir()))
    assert _left(folder, namespaces) == NOTHING
