"""Runs commands as an ordinary user: not root, and a PATH without the programs of the tests' real parts.

    with User() as user:
        user.run(sys.executable, "-m", "pytest", cwd=ROOT)

The user has its own home and temporary folder. If the tests run as root, the command gets another user id and a mount
namespace that makes the interpreter and the tree reachable below root's home.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from tests.support.kubernetes.namespaces import MS_BIND, MS_REC, mount
from tests.support.removal import ROOT
from tests.support.servers import supervised

HIDDEN = (
    *("conntrack", "containerd", "debootstrap", "docker", "dockerd", "go", "gofmt", "helm", "ip"),
    *("ipset", "iptables", "java", "kubectl", "mvn", "nft", "nsenter", "podman", "postconf"),
    *("postfix", "prometheus", "promtool", "runc", "sendmail", "sudo", "swaks", "systemd-analyze"),
)
_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")  # writable by everybody


@functools.cache
def why_missing() -> str | None:
    """The reason why no command can run as an ordinary user here, as text; None if one can."""
    if os.geteuid() != 0:
        return None
    command = _as_user(_other_user(), Path("/"), Path("/"), sys.executable, "-c", "")
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=60)
    except OSError as error:
        return f"root cannot run a command as another user here: {error}"
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return f"root cannot run a command as another user here: {last}" if done.returncode != 0 else None


class User:
    """A context manager. Its end removes the home; `left` returns other files that the user's commands left."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="eilpost-user-"))
        self.temporary, self._path = self.home / "tmp", self.home / "path"
        self.id = os.geteuid() or _other_user()
        self._before = self._files()

    def __enter__(self) -> User:
        self._path.mkdir()
        (self._path / "python3").symlink_to(Path(sys.executable).resolve())
        for folder in os.environ["PATH"].split(os.pathsep):
            for program in sorted(Path(folder).glob("*")) if folder and os.access(folder, os.R_OK) else ():
                link = self._path / program.name
                if program.name not in HIDDEN and not link.is_symlink():
                    link.symlink_to(program)
        self.temporary.mkdir()
        for folder in (self.home, self.temporary):
            os.chown(folder, self.id, -1)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.home)

    def run(
        self, *command: str, cwd: Path, environment: Mapping[str, str] | None = None, timeout: float = 110
    ) -> subprocess.CompletedProcess[str]:
        """The output includes stderr in stdout."""
        changes = os.geteuid() == 0
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "LANG", "LC_"))}
        return subprocess.run(
            _as_user(self.id, self.home, cwd, *command) if changes else command,
            cwd=ROOT if changes else cwd,
            env={
                **kept,
                "PATH": str(self._path),
                "HOME": str(self.home),
                "TMPDIR": str(self.temporary),
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            process_group=supervised.group(),
        )

    def processes(self) -> list[str]:
        """Running processes of this user: those with its id, or with its home in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(self.home) or process.uids().real == self.id != os.geteuid():
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found

    def left(self) -> set[str]:
        """Files that its commands left outside its home, in folders writable by everybody.

        For a user id shared with other programs: files with our names only.
        """
        return self._files() - self._before - {str(self.home)}

    def _files(self) -> set[str]:
        found = set()
        for folder in _FOLDERS:
            for path in Path(folder).glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    ours = self.id != os.geteuid() or path.name.startswith("eilpost-")
                    if ours and path.lstat().st_uid == self.id:
                        found.add(str(path))
        return found


def _other_user() -> int:
    """An unused user id."""
    return 2_000_000 + os.getpid()


def _as_user(user: int, home: Path, folder: Path, *command: str) -> list[str]:
    """Prefix for a command that root runs in `ROOT`."""
    start = ["unshare", "--mount", "--", sys.executable, "-m", __name__, str(user), str(home), str(folder)]
    return [*start, *command]


def _closed(path: Path) -> Path | None:
    """The first folder on the way to `path` that only its owner may enter."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


def _reach(paths: Iterable[Path]) -> None:
    """Replace the closed folders on the way to `paths` by empty ones with only these paths, in this mount namespace."""
    closed = {path: folder for path in paths if (folder := _closed(path))}
    opened = {path: os.open(path, os.O_PATH) for path in closed}
    for folder in set(closed.values()):
        mount("tmpfs", str(folder), kind="tmpfs", data="mode=755")
    for path, file in opened.items():
        path.mkdir(parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{file}", str(path), flags=MS_BIND | MS_REC)
        os.close(file)


def main(user: str, home: str, folder: str, *command: str) -> None:
    os.umask(0o022)
    _reach({Path(path) for path in (sys.base_prefix, sys.prefix, ROOT, home, folder)})
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    os.chdir(folder)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
