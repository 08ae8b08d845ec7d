"""Targets of the Makefile: installed packages, help and error output."""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _packages(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S+)==(\S+)", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE))


def test_readme_and_makefile_state_the_same_duration() -> None:
    durations = re.findall(r"Setting up .* to run eilpost \(once, ([^)]+)\)", MAKEFILE)
    assert len(durations) == 1
    assert f"sets up `.venv` ({durations[0]}, " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_packages_to_run_are_a_part_of_the_packages_to_test() -> None:
    run, test = _packages("requirements.lock"), _packages("requirements-dev.lock")
    assert run.items() <= test.items()
    assert len(run) <= 40
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert not {"pytest", "mypy", "ruff"} & run.keys()
    assert {"aiokafka", "asyncpg", "obstore"} <= run.keys()
    assert set(extras) == {"kafka", "postgres", "objects", "dev"}  # an adapter's extra belongs in requirements.lock


def test_default_target_lists_every_documented_target() -> None:
    result = _make(ROOT, "--no-print-directory")
    assert result.returncode == 0, result.stderr
    targets = set(re.findall(r"^  ([a-z-]+)  ", result.stdout, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert targets == set(phony[1].split())
    assert all(len(line) <= 120 for line in result.stdout.splitlines())


class _Markers(dict[str, bool]):
    def __missing__(self, marker: str) -> bool:
        return False


def _is_selected(arguments: Sequence[str], folder: str, markers: Sequence[str]) -> bool:
    """Whether `pytest ARGUMENTS` runs a test with these markers; an expression of markers is one of Python too."""
    expression = arguments[arguments.index("-m") + 1] if "-m" in arguments else "True"
    folders = [argument for argument in arguments if argument.startswith("tests/")]
    return folder in (folders or [folder]) and eval(expression, {}, _Markers.fromkeys(markers, True))


def test_partial_test_targets_together_run_every_test() -> None:
    targets = re.findall(r"^(test-[a-z]+):", MAKEFILE, re.MULTILINE)
    commands = [shlex.split(line) for line in _make(ROOT, "-n", *targets).stdout.splitlines() if "/pytest " in line]
    assert len(commands) > len(targets) == 5
    pytest_options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]
    markers = [marker.partition(":")[0] for marker in pytest_options["ini_options"]["markers"]]
    of_cluster = re.compile(r"\bmark\.(?:kubernetes|helm|docker)\b")
    for file in (ROOT / "tests" / "kubernetes").glob("test_*.py"):
        assert of_cluster.search(file.read_text(encoding="utf-8")), f"test-cluster leaves out {file}"
    folders = {file.relative_to(ROOT).parts[1] for file in (ROOT / "tests").rglob("test_*.py")} - {"kubernetes"}
    left_out = [
        (folder, *test_markers)
        for folder in folders
        for test_markers in [(), *combinations(markers, 1), *combinations(markers, 2)]
        if not any(_is_selected(words, f"tests/{folder}", test_markers) for words in commands)
    ]
    assert left_out == []


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('case "$*" in *ensurepip*) exit 1;; esac', "apt-get install python3.11-venv"),
        ('case "$*" in *version_info*) exit 1;; esac', "needs Python 3.11 or newer"),
    ],
)
def test_python_without_venv_is_a_one_line_error(tmp_path: Path, script: str, expected: str) -> None:
    python = tmp_path / "python3.11"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (tmp_path / "requirements.lock").touch()
    (tmp_path / "pyproject.toml").touch()
    result = _make(tmp_path, "run", f"PYTHON={python}")
    assert result.returncode == 2
    first, *other_lines = result.stderr.splitlines()
    assert expected in first
    assert all(line.startswith("make") for line in other_lines)


def test_pip_error_and_status_are_passed_on(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(f"not-a-wheel @ {tmp_path.as_uri()}/no.whl\n")
    result = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "install.py"), str(lock)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert "ERROR" in result.stderr


def test_progress_is_shown_only_on_a_terminal(tmp_path: Path) -> None:
    lock, pip = tmp_path / "lock.txt", tmp_path / "pip"
    lock.write_text("other==1 ; sys_platform == 'win32'\none==1\ntwo==2\n")
    pip.write_text(
        "#!/bin/sh\nprintf '%s\\n' 'Ignoring other: ...' 'Collecting one==1 (from ...)' 'Collecting two==2'\n"
    )
    pip.chmod(0o755)
    code = f"import sys; sys.path[0] = {str(ROOT / 'deploy')!r}; sys.executable = {str(pip)!r}; import install, pathlib"
    command = [sys.executable, "-c", f"{code}; sys.exit(install.main(pathlib.Path({str(lock)!r})))"]
    terminal, stderr = pty.openpty()
    try:
        subprocess.run(command, stderr=stderr, check=True, timeout=60)
        shown = os.read(terminal, 1 << 16).decode()
    finally:
        os.close(stderr)
        os.close(terminal)
    assert [line.strip() for line in shown.split("\r")[1:3]] == ["package 1 of 2: one", "package 2 of 2: two"]
    assert re.search(r"2 packages in \d+ s", shown)
    assert subprocess.run(command, capture_output=True, check=True, timeout=60).stderr == b""


def test_eilpost_runs_from_the_repository_in_a_folder_with_spaces(tmp_path: Path) -> None:
    folder, repository = tmp_path / "a folder" / ".venv", tmp_path / "a repository"
    venv.create(folder, with_pip=False, symlinks=True)
    (repository / "deploy").mkdir(parents=True)
    (repository / "eilpost").mkdir()
    shutil.copy(ROOT / "deploy" / "install.py", repository / "deploy")
    (repository / "eilpost" / "entry_point.py").write_text("import sys\n\n\ndef main():\n    print(sys.argv[1:])\n")
    code = f"import sys; sys.path[0] = {str(repository / 'deploy')!r}; import install; install.install_eilpost()"
    subprocess.run([str(folder / "bin" / "python"), "-c", code], check=True, timeout=60)
    command = [str(folder / "bin" / "eilpost"), "up", "two words"]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "['up', 'two words']\n", result.stderr
