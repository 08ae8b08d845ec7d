"""The cluster that all tests of this folder share; each test makes namespaces of its own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.kubernetes.cluster import Kubernetes


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[Kubernetes]:
    with Kubernetes() as cluster:
        yield cluster
