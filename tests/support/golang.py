"""Go programs for tests, each built once per machine in a pinned version.

The binaries are in `$XDG_CACHE_HOME/eilpost/bin`, one file for each program and version. A lock serialises concurrent
runs.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers import supervised

BIN = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eilpost" / "bin"
OLDEST_GO = (1, 21)  # Go 1.21 and later download the toolchain that a module requires

_failures: dict[str, str] = {}  # by file name


@dataclass(frozen=True, slots=True)
class GoProgram:
    """One program. `package` is built as `package@version`, or from the Go module in `source` if given.

    `module`: built as a package of that module, because `go install` refuses its `replace` directives. `flags` go to
    `go build`. `minutes` is the time shown to the user; the time limit is four times as long.
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
        """The reason why the program is not available, as text; None if it is built or can be built."""
        if self.path.exists():
            return None
        return _failures.get(self.path.name) or why_no_go(self.name)

    def prepare(self) -> None:
        """Build the program if it is missing. After a failure `why_missing` returns the reason."""
        if self.path.exists() or self.why_missing() is not None:
            return
        BIN.mkdir(parents=True, exist_ok=True)
        with (BIN / f"{self.path.name}.lock").open("w") as lock, tempfile.TemporaryDirectory(dir=BIN) as folder:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.path.exists():
                print(
                    f"\nBuilding {self.name} {self.version} with Go (once, {self.minutes} min) ...",
                    file=sys.stderr,
                    flush=True,
                )
                self._build(Path(folder))

    def _build(self, folder: Path) -> None:
        environment = {**os.environ, "GOBIN": str(folder), "GOTOOLCHAIN": "auto", "CGO_ENABLED": "0"}
        command = ["go", "build", *self.flags, "-o", f"{folder}/", self.package]
        try:
            source = module_folder(self.module, self.version) if self.module else self.source
            if source is None:
                command = ["go", "install", *self.flags, f"{self.package}@{self.version}"]
            done = subprocess.run(
                command,
                cwd=source,
                env=environment,
                capture_output=True,
                text=True,
                timeout=self.minutes * 240,
                process_group=supervised.group(),
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
    """The reason why a Go module is not available."""


@functools.cache
def module_folder(module: str, version: str) -> Path:
    """The files of a Go module in Go's module cache, downloaded and verified if missing."""
    command = ["go", "mod", "download", "-json", f"{module}@{version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, process_group=supervised.group())
    if done.returncode != 0:
        raise GoModuleError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()}")
    return Path(json.loads(done.stdout)["Dir"])


@functools.cache
def why_no_go(program: str) -> str | None:
    """The reason why `program` cannot be built with Go; None if it can."""
    go = shutil.which("go")
    if go is None:
        return f"Go is not installed, which builds {program} (apt-get install golang-go, or https://go.dev/dl)"
    version = subprocess.run([go, "version"], capture_output=True, text=True, timeout=30).stdout
    found = re.search(r"go([0-9]+)\.([0-9]+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GO:
        return f"Go is too old to build {program}: {version.strip()}; 1.21 or newer is needed (https://go.dev/dl)"
    return None
