"""The tests' own Docker engine: what leads to its containers, and that nothing of it outlives the run."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.containers import images
from tests.support.containers.engine import Engine, EngineError
from tests.support.ports import free_port

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[3]
SERVE = ("python3", "-m", "http.server", "8000", "--directory", "/usr/share")
RUN = """
import sys, time
from pathlib import Path
from tests.support.containers import images
from tests.support.containers.engine import Engine
running = Engine(Path(sys.argv[1]))
running.start()
running.docker("run", "--detach", images.base_image(running), "sleep", "600")
print(running.folder, running._cgroup, flush=True)
time.sleep(600)
"""


def _machine() -> dict[str, str]:
    """What an engine could change of this machine."""
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


def test_only_published_ports_lead_to_containers_and_nothing_leads_out(docker_engine: Engine) -> None:
    base, port = images.base_image(docker_engine), free_port()
    # To all addresses, as most people and testcontainers publish.
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


def test_a_port_is_published_on_loopback_only(docker_engine: Engine) -> None:
    base = images.base_image(docker_engine)
    with pytest.raises(EngineError, match=r"only TCP on 127\.0\.0\.1 is published"):
        docker_engine.docker("run", "--rm", f"--publish=127.0.0.2:{free_port()}:8000", base, "true")


def test_an_engine_ends_with_a_killed_run_and_the_next_start_removes_its_folder(tmp_path: Path) -> None:
    before = _machine()
    killed = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert killed.stdout is not None
        folder, cgroup = killed.stdout.readline().split()
        assert _processes_in(cgroup)
        assert _machine() == before
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        killed.stdout.close()  # type: ignore[union-attr]
    end = time.monotonic() + 20
    while left := _processes_in(cgroup):
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert Path(folder).exists()
    engine = Engine(tmp_path)
    engine.start()
    try:
        assert str(engine.folder) == folder
        assert engine.docker("ps", "--all", "--quiet") == ""
    finally:
        engine.stop()
    assert not Path(folder).exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{cgroup}"))
    assert _machine() == before
