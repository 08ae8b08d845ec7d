"""A run without root, Go and Debian's packages: it reports what it could not test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers.ports import block_until
from tests.support.unprivileged import ROOT, User

# Text that the reason must contain, by marker of a real part.
PARTS = {
    "postfix": "postfix",
    "swaks": "apt-get install swaks",
    "systemd": "apt-get install systemd",
    "kafka": "Java 17",
    "kafka_cluster": "Java 17",
    "kafka_tools": "Java 17",
    "objects": "Go is not installed",
    "compose": "Go is not installed",
    "docker": "root",
    "docker_compose": "Go is not installed",
    "helm": "Go is not installed",
    "helm_4": "Go is not installed",
    "crds": "Go is not installed",
    "strimzi": "Maven",
    "kubernetes": "root",
    "keda": "Go is not installed",
    "kube_router": "Go is not installed",
    "prometheus": "apt-get install prometheus",
}
# One file for each marker, and one without a marker.
FILES = (
    "tests/journeys/test_02_postfix.py",
    "tests/journeys/test_12_swaks.py",
    "tests/journeys/test_27_unreadable.py",
    "tests/journeys/test_31_compose.py",
    "tests/contract/test_log_kafka_topics.py",
    "tests/unit/deploy/test_compose_files.py",
    "tests/unit/deploy/test_systemd_unit.py",
    "tests/unit/helm/test_manifests.py",
    "tests/unit/helm/test_strimzi.py",
    "tests/kubernetes/test_autoscaling.py",
    "tests/kubernetes/test_network_policy.py",
)
NEEDS_NONE = "tests/monitoring/test_runbooks.py"


@pytest.fixture
def user() -> Iterator[User]:
    with User() as one:
        yield one


def _tests(user: User, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The source tree belongs to another user, so the run cannot write to it."""
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    return user.run(sys.executable, "-m", "pytest", *words, cwd=ROOT, environment=environment)


def _tree() -> set[str]:
    found = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in (".git", ".venv", "__pycache__")]
        found |= {os.path.join(folder, name) for name in files}
    return found


def _assert_nothing_is_left(user: User, mounts: str, tree: set[str]) -> None:
    block_until(lambda: not user.processes(), deadline_seconds=10, what=user.processes)
    assert user.left() == set()
    assert {path.name for path in user.home.iterdir()} == {"path", "tmp"}
    assert all(path.name.startswith("pytest-of-") for path in user.temporary.iterdir())
    assert Path("/proc/mounts").read_text() == mounts
    assert _tree() == tree


def test_every_marker_of_a_real_part_is_covered(pytestconfig: pytest.Config) -> None:
    markers = [line.partition(": needs ")[0] for line in pytestconfig.getini("markers") if ": needs " in line]
    assert sorted(PARTS) == sorted(markers)
    sources = "".join((ROOT / file).read_text() for file in FILES)
    assert [name for name in PARTS if f"mark.{name}" not in sources] == []


@pytest.mark.ordinary_user
def test_run_without_real_parts_passes_and_names_each_with_its_reason(user: User) -> None:
    mounts, tree = Path("/proc/mounts").read_text(), _tree()
    done = _tests(user, *FILES, NEEDS_NONE)
    assert done.returncode == 0, done.stdout
    end = done.stdout.rpartition("[100%]")[2].splitlines()
    for name, reason in PARTS.items():
        (line,) = [line for line in end if line.startswith(f"NOT TESTED against a real {name}: ")]
        assert reason in line
    assert " passed, " in end[-1]
    assert " skipped in " in end[-1]
    _assert_nothing_is_left(user, mounts, tree)


@pytest.mark.ordinary_user
def test_same_run_in_ci_fails_and_names_the_missing_part(user: User) -> None:
    mounts, tree = Path("/proc/mounts").read_text(), _tree()
    done = _tests(user, *FILES, CI="true")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    end = done.stdout.rpartition("short test summary info")[2]
    assert "skipped" not in end
    for reason in set(PARTS.values()):
        assert any(reason in line for line in end.splitlines() if "CI=true, and " in line), (reason, end)
    _assert_nothing_is_left(user, mounts, tree)
