"""The Compose Specification's own loader, the one `docker compose` uses: schema, merging of files, consistency.

Made once with Go, in the version named here, into `$XDG_CACHE_HOME/eilpost/bin`, before the first test that needs it
(about a minute). It needs no container engine. Next: `deploy/compose.yaml`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

VERSION = "v2.16.2"
MODULE = f"github.com/compose-spec/compose-go/v2/cmd@{VERSION}"
BIN = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eilpost" / "bin"
LOADER = BIN / f"compose-spec-{VERSION}"
OLDEST_GO = (1, 21)  # fetches the Go that the module asks for by itself

_failure: list[str] = []


def why_missing() -> str | None:
    """Why it cannot be had here, for people; None when it can."""
    if LOADER.exists():
        return None
    if _failure:
        return _failure[0]
    go = shutil.which("go")
    if go is None:
        return "Go is not installed, which makes the compose-spec loader (https://go.dev/dl)"
    said = subprocess.run([go, "version"], capture_output=True, text=True, timeout=30).stdout
    found = re.search(r"go([0-9]+)\.([0-9]+)", said)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GO:
        return f"Go is too old to make the compose-spec loader: {said.strip()}; 1.21 or newer is needed"
    return None


def prepare() -> None:
    """Make it if it is not there; a failure is what `why_missing` says from then on."""
    if why_missing() is not None:
        return
    BIN.mkdir(parents=True, exist_ok=True)
    with (BIN / f"{LOADER.name}.lock").open("w") as lock, tempfile.TemporaryDirectory(dir=BIN) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if LOADER.exists():
            return
        print(f"\nMaking the compose-spec loader {VERSION} with Go (once, about a minute) ...", flush=True)
        environment = {**os.environ, "GOBIN": folder}
        try:
            made = subprocess.run(["go", "install", MODULE], env=environment, capture_output=True, timeout=600)
        except subprocess.TimeoutExpired:
            _failure.append(f"go install {MODULE} took longer than 10 minutes")
            return
        if made.returncode != 0:
            _failure.append(f"go install {MODULE} failed: {made.stderr.decode(errors='replace').strip()[-300:]}")
            return
        (Path(folder) / "cmd").rename(LOADER)


def load(folder: Path, *files: str) -> dict[str, Any]:
    """The model of these files in `folder`, the later put over the earlier. AssertionError says what is wrong."""
    environment = {"PATH": os.defpath, "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [str(LOADER), "-format", "json", *files],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    model: dict[str, Any] = json.loads(done.stdout)
    return model
