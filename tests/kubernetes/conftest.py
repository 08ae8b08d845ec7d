"""The test cluster with a Kafka that all tests of this folder share; each test creates its own namespaces."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.containers import images
from tests.support.kubernetes import custom_resources, network
from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.prometheus import Prometheus
from tests.support.kubernetes.release import HELM_INSTALL, Release

_VOLUMES = 40


@pytest.fixture(autouse=True)
def _no_outside_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to loopback and to the cluster's networks only."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        allowed = ("127.", *(network.NETWORKS if network.is_inside() else ()))
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(allowed):
            raise AssertionError(f"a test tried to connect to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[Kubernetes]:
    with Kubernetes([images.image().archive]) as cluster:
        cluster.add_volumes(_VOLUMES)
        cluster.add_kafka()
        yield cluster


@pytest.fixture(scope="session")
def operators(kubernetes: Kubernetes) -> Kubernetes:
    """The cluster with the custom resources of KEDA, prometheus-operator and cert-manager, without these operators."""
    custom_resources.define(kubernetes)
    return kubernetes


@pytest.fixture(scope="session")
def prometheus(operators: Kubernetes) -> Prometheus:
    """A running Prometheus that scrapes nothing yet."""
    running = Prometheus(operators)
    running.start()
    return running


@pytest.fixture
def release(kubernetes: Kubernetes, request: pytest.FixtureRequest) -> Iterator[Callable[[], Release]]:
    """Creates releases that are not installed yet, each in its own namespace; they are deleted with the test."""
    names = (f"{request.function.__name__[5:].replace('_', '-')[:40].strip('-')}-{n}" for n in itertools.count(1))
    with ExitStack() as namespaces:
        yield lambda: Release(
            kubernetes, namespaces.enter_context(kubernetes.namespace(next(names))), images.image().tag
        )


@pytest.fixture(scope="session")
def mail(kubernetes: Kubernetes) -> Iterator[Release]:
    """A release that tests share: two ready pods of each role but mailstore. Each test leaves it ready."""
    with kubernetes.namespace("mail") as namespace:
        shared = Release(kubernetes, namespace, images.image().tag)
        shared.run_of_readme(HELM_INSTALL)
        yield shared
