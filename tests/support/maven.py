"""Java archives for tests, each fetched once per machine by Maven in a pinned version."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.golang import BIN

_failures: dict[str, str] = {}  # by artifact


@dataclass(frozen=True, slots=True)
class Jar:
    """One archive without its dependencies. `name`: of its file; `artifact`: "group:artifact"."""

    name: str
    artifact: str
    version: str

    @property
    def path(self) -> Path:
        return BIN.parent / f"{self.name}-{self.version}.jar"

    def why_missing(self) -> str | None:
        if self.path.exists():
            return None
        if self.artifact in _failures:
            return _failures[self.artifact]
        return None if shutil.which("mvn") else f"there is no Maven to fetch {self.artifact} (apt-get install maven)"

    def prepare(self) -> None:
        """Fetch the archive if it is missing. After a failure `why_missing` returns the reason."""
        if self.why_missing() is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                return
            folder = self.path.with_suffix(".part")
            name = f"{self.artifact}:{self.version}"
            command = [
                *("mvn", "--quiet", "--batch-mode", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"),
                *(f"-Dartifact={name}", f"-DoutputDirectory={folder}"),
            ]
            try:
                subprocess.run(command, check=True, timeout=300, cwd=self.path.parent, capture_output=True)
            except subprocess.SubprocessError as error:
                _failures[self.artifact] = f"Maven could not fetch {name}: {error}"
                return
            (fetched,) = folder.glob("*.jar")
            fetched.rename(self.path)
            folder.rmdir()
