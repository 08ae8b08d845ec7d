"""Sources of the tests' Kafka in order of preference; without one, tests fail in CI and are skipped elsewhere."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.servers import kafka

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
NOBODY = "127.0.0.1:1"


@contextlib.contextmanager
def _container() -> Iterator[str]:
    yield "container"


@contextlib.contextmanager
def _cluster(nodes: int) -> Iterator[SimpleNamespace]:
    assert nodes == 1
    yield SimpleNamespace(bootstrap="deploy/kafka")


@pytest.mark.parametrize(
    ("given", "docker", "taken"),
    [
        ("127.0.0.1:9092", True, "127.0.0.1:9092"),
        ("127.0.0.1:9092", False, "127.0.0.1:9092"),
        ("", True, "container"),
        ("", False, "deploy/kafka"),
    ],
)
def test_kafka_is_the_given_one_then_a_container_then_ours(
    given: str, docker: bool, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kafka.GIVEN_BOOTSTRAP, given)
    monkeypatch.setattr(kafka, "_docker_answers", lambda: docker)
    monkeypatch.setattr(kafka, "container", _container)
    monkeypatch.setattr(kafka, "cluster", _cluster)
    with kafka.shared() as bootstrap:
        assert bootstrap == taken


def test_missing_docker_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_answers = kafka._docker_answers.__wrapped__  # ignore the cached result of an earlier test
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    assert docker_answers() is False


def _run(folder: Path, ci: str) -> tuple[int, str]:
    """Run one test that needs Kafka with our conftest.py and without Kafka."""
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    (folder / "test_one.py").write_text(
        "import pytest\n\n@pytest.mark.kafka\ndef test_one(kafka_bootstrap):\n    assert kafka_bootstrap\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), folder],
        env=os.environ | {"CI": ci, kafka.GIVEN_BOOTSTRAP: NOBODY, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_missing_kafka_fails_in_ci(tmp_path: Path) -> None:
    status, output = _run(tmp_path, "true")
    assert status == 1, output
    assert f"CI=true, and no server responds at {kafka.GIVEN_BOOTSTRAP}={NOBODY}" in output
    assert "1 error" in output  # before the test itself started


def test_missing_kafka_skips_elsewhere_and_is_reported_at_the_end(tmp_path: Path) -> None:
    status, output = _run(tmp_path, "")
    assert status == 0, output
    assert f"NOT TESTED against a real kafka: no server responds at {kafka.GIVEN_BOOTSTRAP}={NOBODY}" in output
    assert "1 skipped" in output
