"""Programs that the tests build from Go modules, once for a machine, each in a fixed version.

The binaries lie in `$XDG_CACHE_HOME/eilpost/bin`, one file for each program and version. A lock keeps two runs from
building the same program at the same time.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BIN = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eilpost" / "bin"
OLDEST_GO = (1, 21)  # downloads the toolchain that a module asks for

_failures: dict[str, str] = {}  # by file name


@dataclass(frozen=True, slots=True)
class GoProgram:
    """One program. `package` is built as `package@version`, or from the Go module in `source` where one is given.

    `module`: built as a package of that module, whose `replace` directives `go install` would refuse.
    `flags` are passed to `go build`. `minutes` is what people are told; the time limit is four times as long.
    """

    name: str
    package: str
    version: str
    source: Path | None = None
    module: str = ""
    flags: Sequence[str] = ()
    minutes: int = 2

    @property
    def path(self) -> Path:
        return BIN / f"{self.name}-{self.version}"

    def why_missing(self) -> str | None:
        """Why the program cannot be had here, in words; None when it is built or can be."""
        if self.path.exists():
            return None
        return _failures.get(self.path.name) or why_no_go(self.name)

    def prepare(self) -> None:
        """Build it unless it is there. A failure is what `why_missing` returns from then on."""
        if self.path.exists() or self.why_missing() is not None:
            return
        BIN.mkdir(parents=True, exist_ok=True)
        with (BIN / f"{self.path.name}.lock").open("w") as lock, tempfile.TemporaryDirectory(dir=BIN) as folder:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.path.exists():
                print(f"\nBuilding {self.name} {self.version} with Go (once, {self.minutes} min) ...", flush=True)
                self._build(Path(folder))

    def _build(self, folder: Path) -> None:
        environment = {**os.environ, "GOBIN": str(folder), "GOTOOLCHAIN": "auto", "CGO_ENABLED": "0"}
        command = ["go", "build", *self.flags, "-o", f"{folder}/", self.package]
        try:
            source = module_folder(self.module, self.version) if self.module else self.source
            if source is None:
                command = ["go", "install", *self.flags, f"{self.package}@{self.version}"]
            done = subprocess.run(
                command, cwd=source, env=environment, capture_output=True, text=True, timeout=self.minutes * 240
            )
        except GoModuleError as error:
            _failures[self.path.name] = str(error)
            return
        except subprocess.TimeoutExpired:
            _failures[self.path.name] = f"{' '.join(command)} took longer than {self.minutes * 4} minutes"
            return
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            _failures[self.path.name] = f"{' '.join(command)} failed: {last}"
            return
        (built,) = folder.iterdir()
        built.rename(self.path)


class GoModuleError(Exception):
    """Why a Go module cannot be had, in words."""


@functools.cache
def module_folder(module: str, version: str) -> Path:
    """The files of a Go module, in Go's module cache; downloaded and checked there unless they are there."""
    command = ["go", "mod", "download", "-json", f"{module}@{version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise GoModuleError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()}")
    return Path(json.loads(done.stdout)["Dir"])


@functools.cache
def why_no_go(program: str) -> str | None:
    """Why `program` cannot be built with Go here; None when it can."""
    go = shutil.which("go")
    if go is None:
        return f"Go is not installed, which builds {program} (apt-get install golang-go, or https://go.dev/dl)"
    version = subprocess.run([go, "version"], capture_output=True, text=True, timeout=30).stdout
    found = re.search(r"go([0-9]+)\.([0-9]+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GO:
        return f"Go is too old to build {program}: {version.strip()}; 1.21 or newer is needed (https://go.dev/dl)"
    return None
