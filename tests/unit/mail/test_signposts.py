"""A module that names the next file to read names one that exists."""

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
    if "Next: `" in path.read_text()
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_next_file_exists(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    _, _, after = docstring.partition("Next:")
    named = re.findall(r"`([a-z0-9_/]+\.py)`", after)
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name
