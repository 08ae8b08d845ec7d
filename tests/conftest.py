"""Fixtures and rules for every test: no connections outside this machine, and no silently missing real part.

A marker names each real part that a test needs (Debian's Postfix and swaks, Apache Kafka, ...). If the part is missing,
its tests are skipped and the run reports it at its head and its end; with CI=true they fail.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import hypothesis
import pytest
import structlog

from tests.support import unprivileged as _unprivileged
from tests.support.chart import crds as _crds
from tests.support.chart import strimzi as _strimzi
from tests.support.chart.helm import HELM_4 as _HELM_4
from tests.support.containers import compose as _docker_compose
from tests.support.containers import compose_spec as _composefile
from tests.support.containers import engine as _docker
from tests.support.containers import images as _images
from tests.support.kubernetes import programs as _kubernetes
from tests.support.servers import kafka as _kafka
from tests.support.servers import kafka_tools as _kafka_tools
from tests.support.servers import object_store as _objects
from tests.support.servers import postfix as _postfix
from tests.support.servers import prometheus as _prometheus

pytest_plugins = ["tests.support.distribution"]

# A slow machine is not a defect: examples have no deadline.
hypothesis.settings.register_profile("eilpost", deadline=None)
hypothesis.settings.load_profile("eilpost")

_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


def _why_no_swaks() -> str | None:
    return None if shutil.which("swaks") else "Debian's swaks package is not installed (apt-get install swaks)"


def _why_no_systemd() -> str | None:
    return None if shutil.which("systemd-analyze") else "systemd-analyze is not installed (apt-get install systemd)"


def _why_no_atheris() -> str | None:
    return (
        None
        if find_spec("atheris")
        else "atheris is not installed (it has packages for Linux on x86-64 and Python 3.11 to 3.13)"
    )


_REAL_PARTS: dict[str, Callable[[], str | None]] = {
    "postfix": _postfix.why_missing,
    "atheris": _why_no_atheris,
    "swaks": _why_no_swaks,
    "systemd": _why_no_systemd,
    "kafka": _kafka.why_missing,
    "kafka_cluster": _kafka.why_no_cluster,
    "kafka_tools": _kafka_tools.why_missing,
    "objects": _objects.why_missing,
    "compose": _composefile.why_missing,
    "docker": _images.why_missing,
    "docker_compose": _docker_compose.COMPOSE.why_missing,
    "helm": _kubernetes.HELM.why_missing,
    "helm_4": _HELM_4.why_missing,
    "crds": _crds.why_missing,
    "strimzi": _strimzi.JAR.why_missing,
    "kubernetes": _kubernetes.why_missing,
    "keda": _kubernetes.why_no_keda,
    "kube_router": _kubernetes.KUBE_ROUTER.why_missing,
    "prometheus": _prometheus.why_missing,
    "ordinary_user": _unprivileged.why_missing,
}
_MADE_ONCE: dict[str, Callable[[], None]] = {
    "kafka": _kafka.prepare,
    "kafka_cluster": _kafka.prepare,
    "kafka_tools": _kafka_tools.prepare,
    "objects": _objects.prepare,
    "compose": _composefile.prepare,
    "docker": _images.prepare,
    "docker_compose": _docker_compose.COMPOSE.prepare,
    "helm": _kubernetes.HELM.prepare,
    "helm_4": _HELM_4.prepare,
    "crds": _crds.prepare,
    "strimzi": _strimzi.JAR.prepare,
    "kubernetes": _kubernetes.prepare,
    "keda": _kubernetes.prepare_keda,
    "kube_router": _kubernetes.KUBE_ROUTER.prepare,
}


def _missing() -> dict[str, str]:
    return {name: why for name, why_missing in _REAL_PARTS.items() if (why := why_missing()) is not None}


def _is_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_report_header(config: pytest.Config) -> list[str]:
    missing = _missing()
    return [f"real {name}: " + (f"MISSING: {missing[name]}" if name in missing else "here") for name in _REAL_PARTS]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what takes longer than a test's time limit before the first test."""
    if not session.config.option.collectonly:
        for name, prepare in _MADE_ONCE.items():
            if any(item.get_closest_marker(name) for item in session.items):
                prepare()


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = {name: why for name, why in _missing().items() if item.get_closest_marker(name) is not None}
    if missing and _is_ci():
        pytest.fail(f"CI=true, and {'; '.join(dict.fromkeys(missing.values()))}", pytrace=False)
    if missing:
        pytest.skip("; ".join(f"no real {name}: {why}" for name, why in missing.items()))


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    for name, why in _missing().items():
        terminalreporter.write_line(f"NOT TESTED against a real {name}: {why}", red=True, bold=True)


@pytest.fixture(autouse=True)
def _no_outside_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test may open blocking connections to loopback only."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(_LOOPBACK):
            raise AssertionError(f"a test tried to connect to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Restore structlog, which a command configures for the whole process."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """The address of one broker for the whole run, started on first use. Use unique topic and group names."""
    with _kafka.shared() as bootstrap:
        yield bootstrap


@pytest.fixture
def kafka_cluster() -> Iterator[_kafka.ClusterFactory]:
    """Starts running clusters that a test may break (marker kafka_cluster); they end with the test."""
    with ExitStack() as made:
        yield lambda nodes=3, **how: made.enter_context(_kafka.cluster(nodes, **how))


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[_docker.Engine]:
    """A Docker engine for this run (marker docker), without images: `Image.load_into` adds them."""
    running = _docker.shared()
    yield running
    running.stop()
