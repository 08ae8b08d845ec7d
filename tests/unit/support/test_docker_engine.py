"""The tests' Docker engine: network isolation of its containers, and cleanup after a run."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import images
from tests.support.containers.engine import Engine, EngineError
from tests.support.interrupted import SIGNALS, InterruptedRun, until
from tests.support.servers.ports import free_port

pytestmark = pytest.mark.docker

SERVE = ("python3", "-m", "http.server", "8000", "--directory", "/usr/share")
# Two containers with a volume, a network and a published port.
COMPOSE_FILE = """
x-waiting: &waiting {image: "eilpost.test/sleep:1", command: [sleep, "600"], volumes: ["data:/data"]}
services:
  one: {<<: *waiting, ports: ["127.0.0.1::8000"]}
  two: *waiting
volumes: {data: {}}
"""
COMPOSE_TEST = """
from pathlib import Path
from tests.support.containers.compose import Project
from tests.support.interrupted import wait

def test_compose(docker_engine):
    here = Path(__file__).parent
    docker_engine.docker("import", str(here / "sleep.tar"), "eilpost.test/sleep:1")
    with Project(docker_engine, "waiting", [here / "compose.yaml"], {}) as project:
        project.run("up", "--detach", "--pull=never")
        wait(str(docker_engine.folder), docker_engine.cgroup)
"""
ENGINE_TEST = """
from pathlib import Path
from tests.support.containers.engine import Engine
from tests.support.interrupted import wait

def test_engine():
    engine = Engine(Path(__file__).with_name("slots"))
    engine.start()
    wait(str(engine.folder), engine.cgroup, engine.remover_pid)
"""


NOTHING: dict[str, Any] = {"processes": [], "cgroups": [], "folder": False}


def _machine() -> dict[str, str]:
    """State of this machine that an engine could change."""
    commands = (["ip", "-brief", "link"], ["iptables-save"], ["sysctl", "net.ipv4.ip_forward"])
    shown = {command[0]: subprocess.run(command, capture_output=True, text=True).stdout for command in commands}
    rules = [line for line in shown["iptables-save"].splitlines() if line.startswith("-A")]
    return {**shown, "iptables-save": "\n".join(rules), "mounts": Path("/proc/mounts").read_text()}


def _processes_in(cgroup: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if cgroup in (process / "cgroup").read_text() or cgroup in (process / "cmdline").read_text():
                found.append(process.name)
    return found


def _write_image(path: Path) -> None:
    """Write a root file system with /bin/sleep and the libraries that it loads."""
    output = subprocess.run(["ldd", "/bin/sleep"], capture_output=True, text=True, check=True).stdout
    with tarfile.open(path, "w", dereference=True) as archive:
        for name in ("/bin/sleep", *re.findall(r"/\S+", output)):
            archive.add(name)


def _left(folder: str, cgroup: str) -> dict[str, Any]:
    groups = [*Path("/sys/fs/cgroup").glob(cgroup), *Path("/sys/fs/cgroup").glob(f"*/{cgroup}")]
    return {"processes": _processes_in(cgroup), "cgroups": groups, "folder": Path(folder).exists()}


def test_containers_are_reached_by_published_ports_only_and_reach_nothing(docker_engine: Engine) -> None:
    base, port = images.base_image(docker_engine), free_port()
    # Published on all addresses, as most users and testcontainers do.
    docker_engine.docker("run", "--detach", "--name=served", f"--publish={port}:8000", base, *SERVE)
    try:
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                with contextlib.closing(connection):
                    connection.request("GET", "/")
                    assert b"zoneinfo" in connection.getresponse().read()
                    break
            assert time.monotonic() < end, docker_engine.logs("served")
            time.sleep(0.1)
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
        assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
        with pytest.raises(EngineError, match=r"unreachable|No route"):
            docker_engine.docker("exec", "served", "wget", "--tries=1", "--timeout=20", "http://192.0.2.1/")
    finally:
        docker_engine.docker("rm", "--force", "served")


def test_port_is_published_on_loopback_only(docker_engine: Engine) -> None:
    base = images.base_image(docker_engine)
    with pytest.raises(EngineError, match=r"only TCP on 127\.0\.0\.1 is published"):
        docker_engine.docker("run", "--rm", f"--publish=127.0.0.2:{free_port()}:8000", base, "true")


@pytest.mark.docker_compose
@SIGNALS
def test_ended_run_leaves_nothing_of_its_compose_project(tmp_path: Path, number: signal.Signals) -> None:
    before = _machine()
    (tmp_path / "compose.yaml").write_text(COMPOSE_FILE)
    _write_image(tmp_path / "sleep.tar")
    with InterruptedRun(tmp_path, COMPOSE_TEST) as run:
        folder, cgroup = run.ready()
        assert len(_processes_in(cgroup)) > 2
        assert _machine() == before
        run.end(number)
    until(lambda: _left(folder, cgroup) == NOTHING)
    assert _left(folder, cgroup) == NOTHING
    assert _machine() == before


def test_next_start_cleans_up_after_a_killed_remover(tmp_path: Path) -> None:
    with InterruptedRun(tmp_path, ENGINE_TEST) as run:
        folder, cgroup, remover = run.ready()
        os.kill(remover, signal.SIGKILL)
        run.end(signal.SIGKILL)
    until(lambda: not _processes_in(cgroup))
    assert Path(folder).exists()
    engine = Engine(tmp_path / "slots")
    engine.start()
    try:
        assert str(engine.folder) == folder
        assert engine.docker("ps", "--all", "--quiet") == ""
    finally:
        engine.stop()
    assert _left(folder, cgroup) == NOTHING
