"""Linux namespaces for one test cluster (network, mounts, processes) that end with the process that created them.

`Namespaces` starts this file as a guardian, which forks the first process of a new PID namespace. When the guardian's
standard input closes, that first process exits, and the kernel kills every process of the namespace and drops its
mounts and network; the guardian then removes the cgroups and the folder. `remove_stale` cleans up after a killed
guardian.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.removal import ROOT, cgroups, remove

HOST = "10.123.0.1"  # address of the network namespace in its own network; a name server listens there
PREFIX = "eilpost-kubernetes-"  # of folders and cgroups
_LOCK = "lock"
_CGROUPS = Path("/sys/fs/cgroup")
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x20000000,
    0x40000000,
)
MS_BIND, MS_REC, _MS_PRIVATE, _MS_SHARED = 0x1000, 0x4000, 0x40000, 0x100000
# Kernel settings of the whole machine that kubelet would change. It gets writable files instead.
HOST_SETTINGS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
_NETWORK_SETTINGS = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
_CHANGED_FOLDERS = (Path("/var/lib"), Path("/var/log"))  # kubelet and the CNI plugins write there


class Namespaces:
    """Namespaces with `folder` for their files. `enter` returns the command line that runs a command in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._guardian = subprocess.Popen(
            [sys.executable, "-S", "-m", __name__, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        assert self._guardian.stdout is not None
        line = self._guardian.stdout.readline()
        if not line.strip().isdigit():
            self.close()
            raise RuntimeError("no namespaces could be made; the error is above")
        self.pid = int(line)

    @property
    def guardian_pid(self) -> int:
        return self._guardian.pid

    @property
    def cgroup(self) -> str:
        return f"/{self.folder.name}"

    def enter(self, *command: str, network_only: bool = False) -> list[str]:
        if network_only:
            return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command]
        return [
            *("nsenter", f"--target={self.pid}", "--mount", "--net", "--ipc", "--uts", "--pid", "--"),
            *("env", f"--chdir={Path.cwd()}", *command),
        ]

    def close(self) -> None:
        """End every process in them; return when they are gone. Idempotent."""
        assert self._guardian.stdin is not None
        assert self._guardian.stdout is not None
        self._guardian.stdin.close()
        self._guardian.wait(60)
        self._guardian.stdout.close()


def remove_stale(parent: Path) -> None:
    """Remove folders and cgroups of killed guardians. A running guardian holds its lock."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder, folder.name)


def _make_cgroups(name: str) -> None:
    for cgroup in cgroups(name):
        cgroup.mkdir()
        # empty in a new cgroup of version 1, which then accepts no process
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (cgroup / setting).exists() and not (cgroup / "cgroup.controllers").exists():
                (cgroup / setting).write_text((cgroup.parent / setting).read_text())
    if (_CGROUPS / "cgroup.controllers").exists():
        enabled = " ".join(f"+{name}" for name in (_CGROUPS / "cgroup.controllers").read_text().split())
        for parent in (_CGROUPS, _CGROUPS / name):
            (parent / "cgroup.subtree_control").write_text(enabled)


def _guard(folder: Path) -> None:
    """Create the namespaces, report the host's pid of their first process, and wait for the end of standard input."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), False)
        try:
            _make_cgroups(folder.name)
            alive, ours = os.pipe()
            ready, report = os.pipe()
            _call("unshare", _CLONE_NEWPID)
            first = os.fork()
            if first == 0:
                os.close(ours)
                os.close(ready)
                lock.close()
                _be_first(folder, alive, report)
            os.close(alive)
            os.close(report)
            if os.read(ready, 1):
                os.write(1, f"{first}\n".encode())
                os.close(1)
                while os.read(0, 1):
                    pass
            os.close(ours)
            os.waitpid(first, 0)
        finally:
            remove(folder, folder.name)


def _be_first(folder: Path, alive: int, report: int) -> None:
    """First process: set up mounts and network, then reap orphans until the guardian closes the pipe `alive`."""
    os.close(0)
    os.close(1)
    try:
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS)
        mount("none", "/", flags=MS_REC | _MS_PRIVATE)
        mount("none", "/", flags=MS_REC | _MS_SHARED)  # share with the containers, not with the host
        mount("proc", "/proc", kind="proc")
        for setting in HOST_SETTINGS:
            copy = folder / setting.replace("/", ".")
            copy.write_text((Path("/proc/sys") / setting).read_text())
            mount(str(copy), f"/proc/sys/{setting}", flags=MS_BIND)
        mount("tmpfs", "/run", kind="tmpfs")
        _resolve_by(HOST)
        for path in _CHANGED_FOLDERS:
            upper, work = (folder / "overlays" / path.name / part for part in ("upper", "work"))
            upper.mkdir(parents=True)
            work.mkdir()
            mount("overlay", str(path), kind="overlay", data=f"lowerdir={path},upperdir={upper},workdir={work}")
        for setting in _NETWORK_SETTINGS:
            if (Path("/proc/sys") / setting).exists():
                (Path("/proc/sys") / setting).write_text("1")
        signal.signal(signal.SIGCHLD, _reap)
        os.write(report, b"1")
        os.close(report)
        os.read(alive, 1)
    except BaseException as error:
        print(f"namespaces: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _resolve_by(server: str) -> None:
    """Make processes of the namespaces use the cluster's own name server."""
    own = Path("/run/resolv.conf")
    own.write_text(f"nameserver {server}\n")
    used = Path("/etc/resolv.conf").resolve()
    if used.is_relative_to("/run"):  # its location is hidden now
        used.parent.mkdir(parents=True, exist_ok=True)
        used.touch()
    mount(str(own), str(used), flags=MS_BIND)


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def mount(source: str, target: str, *, kind: str = "none", flags: int = 0, data: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), flags, data.encode())


def _call(function: str, *arguments: bytes | int | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}{arguments}: {os.strerror(number)}")


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
