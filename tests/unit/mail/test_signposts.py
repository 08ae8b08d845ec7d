"""Every module says where to read on, and the file it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MODULES = [
    path
    for package in ("mail", "ingress", "router", "delivery", "mailstore", "eilpost", "deploy")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__main__.py" and path != ROOT / "mail" / "telemetry.py" and len(path.read_text()) > 200
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_next_file_exists(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    _, following, after = docstring.partition("Next:")
    assert following, "no Next: line"
    named = re.findall(r"`([a-z0-9_/]+\.py)`", after)
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name
