"""Docker Compose, built with Go as a plugin of `docker`, and running compose projects."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.containers.engine import Engine, EngineError
from tests.support.golang import GoProgram

_MODULE = "github.com/docker/compose/v2"
_VERSION = "v2.40.3"
COMPOSE = GoProgram(
    "docker-compose",
    "./cmd",
    _VERSION,
    module=_MODULE,
    flags=("-ldflags", f"-s -w -X {_MODULE}/internal.Version={_VERSION}"),
    minutes=4,
)


class Project:
    """A running project: `docker compose` with its files and variables. Its resources are removed at the end of the
    block.
    """

    def __init__(self, engine: Engine, name: str, files: list[Path], variables: Mapping[str, str]) -> None:
        plugins = engine.folder / "client" / "cli-plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        if not (plugins / "docker-compose").exists():
            shutil.copy2(COMPOSE.path, plugins / "docker-compose")
        self._command = ["docker", "compose", "--project-name", name, "--progress=plain"]
        self._command += [f"--file={path}" for path in files]
        self._environment = {**engine.environment, **variables}

    def run(self, *words: str, timeout: float = 120) -> str:
        """The output of a `docker compose` command. Raises EngineError with its error output."""
        done = subprocess.run(
            [*self._command, *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        if done.returncode != 0:
            raise EngineError(f"docker compose {' '.join(words)}: {done.stderr.strip()[-3000:]}")
        return done.stdout.strip()

    def containers(self) -> list[dict[str, Any]]:
        """The output of `docker compose ps` for each container, stopped ones included."""
        return [json.loads(line) for line in self.run("ps", "--all", "--format=json").splitlines()]

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        self.run("down", "--volumes", "--timeout=1")
