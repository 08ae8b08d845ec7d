"""The Dockerfile as text, for machines without Docker; tests/journeys/test_30_image.py builds and runs it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LINES = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
    "packages"
]


def _said(instruction: str) -> list[str]:
    return [line.removeprefix(instruction).strip() for line in LINES if line.startswith(instruction + " ")]


def test_both_stages_use_the_same_python() -> None:
    assert LINES.index("ARG PYTHON_IMAGE=python:3.13-slim") < LINES.index("FROM ${PYTHON_IMAGE} AS build")
    assert _said("FROM") == ["${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}"]


def test_image_contains_every_package() -> None:
    copied = {words.split()[0] for words in _said("COPY")}
    assert set(PACKAGES) <= copied
    allowed = {
        line[1:] for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    wanted = {word for words in _said("COPY") if "--from" not in words for word in words.split()[:-1]}
    assert wanted == allowed
    assert all((ROOT / name).exists() for name in wanted)


def test_image_runs_as_its_own_user_and_receives_signals() -> None:
    assert _said("USER") == ["10001:10001"]
    assert json.loads(_said("ENTRYPOINT")[0]) == ["eilpost"]
    assert _said("STOPSIGNAL") == ["SIGTERM"]


def test_installed_packages_are_locked() -> None:
    text = "\n".join(LINES)
    assert text.count("--require-hashes") == 2
    assert re.search(r"pip install uv==[0-9.]+ ", text)
