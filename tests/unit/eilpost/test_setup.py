"""`make setup` says how far it is, and says it the same way everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_how_long_it_takes_is_said_once() -> None:
    (takes,) = re.findall(r"Setting up .*\(once, ([^)]+)\)", (ROOT / "Makefile").read_text())
    assert f"sets up `.venv` ({takes}, " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_pip_cannot_find_is_its_word_and_its_status(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        f"nothing==1.0 ; python_version < '3' --hash=sha256:{'0' * 64}\nnot-a-wheel @ {tmp_path.as_uri()}/no.whl\n"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "install.py"), str(lock)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "ERROR" in done.stderr
    assert "could not be set up" in done.stderr
