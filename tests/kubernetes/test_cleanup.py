"""Nothing of the test cluster is left on the machine, whatever ends the run that started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.kubernetes.namespaces import HOST_SETTINGS, PREFIX, cgroups, remove_stale

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(300)]

# Starts a cluster with a running pod, says where it is, and waits.
RUN = """
import json, signal, sys
from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.configuration import PAUSE_IMAGE
from tests.support.kubernetes.manifests import pause_pod

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
with Kubernetes() as cluster:
    cluster.apply([pause_pod("waiting")])
    cluster.kubectl("wait", "--for=condition=Ready", "pod/waiting", "--timeout=30s")
    print(json.dumps([str(cluster.folder), cluster.namespaces.pid, cluster.namespaces.guardian_pid]), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    )
    yield process
    process.kill()
    process.communicate()


def _settings() -> dict[str, str]:
    return {name: Path("/proc/sys", name).read_text() for name in HOST_SETTINGS}


def _in_namespaces(found: dict[str, int]) -> list[str]:
    """The processes of the machine that are in one of these namespaces."""
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


def _begin(run: subprocess.Popen[str]) -> tuple[Path, dict[str, int], int]:
    assert run.stdout is not None
    folder, first, guardian = json.loads(run.stdout.readline())
    namespaces = {name: os.stat(f"/proc/{first}/ns/{name}").st_ino for name in ("net", "pid", "mnt")}
    assert len(_in_namespaces(namespaces)) > 20
    assert all(cgroup.exists() for cgroup in cgroups(Path(folder).name))
    return Path(folder), namespaces, guardian


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_run_that_ends_early_leaves_nothing(run: subprocess.Popen[str], number: signal.Signals) -> None:
    before = _settings()
    folder, namespaces, guardian = _begin(run)
    run.send_signal(number)
    run.wait(90)
    psutil.wait_procs([psutil.Process(guardian)] if psutil.pid_exists(guardian) else [], timeout=90)
    assert _left(folder, namespaces) == NOTHING
    assert _settings() == before


def test_the_next_run_removes_what_a_killed_guardian_left(run: subprocess.Popen[str]) -> None:
    folder, namespaces, guardian = _begin(run)
    os.kill(guardian, signal.SIGKILL)
    run.kill()
    run.wait(90)
    assert folder.exists()
    assert folder.name.startswith(PREFIX)
    end = time.monotonic() + 60
    while _in_namespaces(namespaces) and time.monotonic() < end:  # the kernel is killing them; one holds the lock
        time.sleep(0.05)
    remove_stale(Path(tempfile.gettempdir()))
    assert _left(folder, namespaces) == NOTHING
