"""A Docker engine for one test run: Debian's docker.io as root in its own PID, mount and network namespaces.

Its processes, mounts, bridges and packet filter rules end with the namespaces, which end with the run; a separate
process then removes its cgroups and its folder. Containers reach only their own network, and are reached only by ports
published on 127.0.0.1 (`forwarder.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support import removal
from tests.support.servers import supervised

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eilpost"
PROXY_PORT = 3128  # inside the engine's network namespace
_FORWARDER = Path(__file__).with_name("forwarder.py")
_PACKAGES = "docker.io containerd runc iptables iproute2 debootstrap"
_PROGRAMS = ("dockerd", "docker", "containerd", "runc", "iptables", "ip", "debootstrap", "unshare")
_SLOTS = 16  # engines of one user at a time

# $1 is the engine's folder. Files that the programs write to /run and /etc stay in the mount namespace.
_OUTER = """
set -e
touch "$1/machine"
mount --bind /proc/self/ns/net "$1/machine"
exec unshare --fork --kill-child --pid --mount-proc --net -- sh -ec "$2" sh "$1" "$3"
"""
_INNER = """
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
ip addr add 10.211.0.53/32 dev lo
"$1/forwarder" names 10.211.0.53 >"$1/names.log" 2>&1 &
containerd --config "$1/containerd.toml" >"$1/containerd.log" 2>&1 &
while [ ! -S /run/containerd.sock ]; do sleep 0.02; done
dockerd --host "unix://$1/docker.sock" --containerd /run/containerd.sock --data-root "$1/data" \
  --pidfile /run/docker.pid --config-file "$1/daemon.json" --cgroup-parent "$2" \
  --exec-opt native.cgroupdriver=cgroupfs --userland-proxy-path "$1/publish" \
  --bip 10.212.0.1/24 --dns 10.211.0.53 --default-address-pool base=10.213.0.0/16,size=24 \
  >"$1/dockerd.log" 2>&1 &
wait
"""
_CONTAINERD = """
version = 2
root = "{folder}/containerd"
state = "/run/ctd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/containerd.sock"
"""


class EngineError(Exception):
    """Error output of the engine or its client."""


@functools.cache
def why_missing() -> str | None:
    """The reason why no Docker engine can be started here, as text; None if one can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "the tests do not run as root, which starting a Docker engine needs"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install {_PACKAGES})"
    result = subprocess.run(["unshare", "--fork", "--pid", "--mount", "--net", "true"], capture_output=True, text=True)
    return f"no namespaces can be made here: {result.stderr.strip()}" if result.returncode != 0 else None


class Engine:
    """One engine. `start()` takes the first free slot and removes leftovers in it."""

    def __init__(self, slots: Path = CACHE / "docker") -> None:
        self.folder = Path()
        self._slots = slots
        self.cgroup = ""
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._remover: subprocess.Popen[bytes] | None = None
        self._egress: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Value of DOCKER_HOST."""
        return f"unix://{self.folder}/docker.sock"

    @property
    def remover_pid(self) -> int:
        """The process that cleans up when this run ends."""
        assert self._remover is not None
        return self._remover.pid

    @property
    def environment(self) -> dict[str, str]:
        """Environment for clients of the engine."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "DOCKER_HOST": self.address,
            "DOCKER_CONFIG": str(self.folder / "client"),
            "DOCKER_BUILDKIT": "0",  # BuildKit would need a client plugin
        }

    def start(self) -> None:
        """Return when the engine replies."""
        group = supervised.group()  # its exit handler is registered first, so it runs after ours
        atexit.register(self.stop)
        self._take_slot()
        (self.folder / "client").mkdir(parents=True)
        (self.folder / "daemon.json").write_text("{}")
        (self.folder / "containerd.toml").write_text(_CONTAINERD.format(folder=self.folder))
        forward = f'exec "{sys.executable}" -IS "{_FORWARDER}"'
        for name, words in (("forwarder", ""), ("publish", f'publish "{self.folder}/machine"')):
            (self.folder / name).write_text(f'#!/bin/sh\n{forward} {words} "$@"\n')
            (self.folder / name).chmod(0o755)
        with (self.folder / "start.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--", "sh", "-c", _OUTER, "sh", str(self.folder), _INNER, f"/{self.cgroup}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                process_group=group,
            )
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(EngineError):
                self.docker("version", timeout=5)
                return
            if time.monotonic() > end or self._process.poll() is not None:
                raise EngineError(f"the Docker engine did not start: {self._said()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop all processes of the engine and remove its folder. Idempotent."""
        if self._egress is not None:
            self._egress.kill()
            self._egress.wait()
            self._egress = None
        if self._process is not None:
            first = self._first_process()
            self._process.kill()
            self._process.wait()
            end = time.monotonic() + 30
            while first is not None and first.exists() and time.monotonic() < end:
                time.sleep(0.02)  # the kernel ends every process of the namespace before the first one
            self._process = None
        if self._remover is not None:
            self._remover.communicate()
            self._remover = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        atexit.unregister(self.stop)

    def docker(self, *words: str, timeout: float = 60, stdin: Path | None = None) -> str:
        """The output of a `docker` command. Raises EngineError with its error output."""
        with stdin.open("rb") if stdin else contextlib.nullcontext(subprocess.DEVNULL) as source:
            done = subprocess.run(
                ["docker", *words],
                env=self.environment,
                stdin=source,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        if done.returncode != 0:
            raise EngineError(f"docker {' '.join(words)}: {done.stderr.strip()[-3000:]}\n{done.stdout[-1500:]}")
        return done.stdout.strip()

    def logs(self, name: str) -> str:
        """Standard error and standard output of a container."""
        command = ["docker", "logs", name]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, errors="replace", timeout=60
        )
        return done.stderr + done.stdout

    def inspect(self, name: str) -> dict[str, object]:
        """`docker inspect` of a container or an image."""
        (found,) = json.loads(self.docker("inspect", name))
        return dict(found)

    def has(self, tag: str) -> bool:
        """Whether an image of this name exists."""
        return bool(self.docker("images", "--quiet", tag))

    def build(self, context: Path, tag: str, *words: str, dockerfile: str = "Dockerfile", timeout: float = 600) -> str:
        """Build an image; its steps reach package registries through this machine's network."""
        proxy = f"http://127.0.0.1:{PROXY_PORT}"
        self._open_egress()
        proxies = [f"--build-arg={name}={proxy}" for name in ("HTTPS_PROXY", "https_proxy")]
        options = ["--network=host", "--pull=false", "--force-rm", *proxies, *words]
        return self.docker(
            "build", *options, "--file", str(context / dockerfile), "--tag", tag, str(context), timeout=timeout
        )

    def _open_egress(self) -> None:
        if self._egress is not None:
            return
        first = self._first_process()
        if first is None:
            raise EngineError("the Docker engine does not run")
        command = [sys.executable, "-IS", str(_FORWARDER), "egress", str(first / "ns/net"), str(PROXY_PORT)]
        self._egress = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=supervised.group())

    def _first_process(self) -> Path | None:
        """The /proc folder of the PID namespace's first process."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            return Path(f"/proc/{children[0]}") if children else None
        return None

    def _take_slot(self) -> None:
        slots = self._slots
        slots.mkdir(parents=True, exist_ok=True)
        for number in range(_SLOTS):
            lock = os.open(slots / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self._lock, self.folder = lock, slots / str(number)
            # cgroups belong to the machine, slots to one cache folder
            self.cgroup = f"eilpost-docker-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"
            removal.remove(self.folder, self.cgroup)
            self._remover = removal.at_the_end(self.folder, self.cgroup, [lock])
            return
        raise EngineError(f"all {_SLOTS} slots in {slots} are in use")

    def _said(self) -> str:
        logs: Mapping[str, str] = {
            name: path.read_text(errors="replace")[-1500:]
            for name in ("start.log", "containerd.log", "dockerd.log")
            if (path := self.folder / name).exists()
        }
        return "\n".join(f"{name}: {text}" for name, text in logs.items())


@functools.cache
def shared() -> Engine:
    """The engine of this run, started on first use."""
    engine = Engine()
    engine.start()
    return engine
