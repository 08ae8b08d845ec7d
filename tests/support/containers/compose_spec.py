"""The Compose Specification's loader, as used by `docker compose`: schema, merging of files, consistency.

Built once with Go before the first test that needs it. It needs no container engine.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support.golang import GoProgram

LOADER = GoProgram("compose-spec", "github.com/compose-spec/compose-go/v2/cmd", "v2.16.2", minutes=1)
why_missing, prepare = LOADER.why_missing, LOADER.prepare


def load(folder: Path, *files: str) -> dict[str, Any]:
    """The model of these files in `folder`, merged in order. Raises AssertionError with the loader's error."""
    environment = {"PATH": os.defpath, "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [str(LOADER.path), "-format", "json", *files],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    model: dict[str, Any] = json.loads(done.stdout)
    return model
