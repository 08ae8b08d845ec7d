"""One three-broker Kafka and one eilpost cluster for all fault tests of a run, started on first use."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.servers import kafka
from tests.support.servers.mail_cluster import MailCluster

# A dead broker is detected after 3 s instead of 9 s, to keep the short form short.
QUICK = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}

_turns = count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run these tests last and on one worker: eleven processes would slow down tests that run in parallel."""
    items.sort(key=lambda item: "three_brokers" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def _shared_brokers() -> Iterator[kafka.Cluster]:
    with kafka.cluster(3, settings=QUICK) as brokers:
        yield brokers


@pytest.fixture
def three_brokers(_shared_brokers: kafka.Cluster) -> kafka.Cluster:
    """Three running brokers, whatever the previous test did to them."""
    for node in _shared_brokers.nodes:
        node.thaw()
    _shared_brokers.start()
    return _shared_brokers


@pytest.fixture(scope="session")
def _shared_cluster(_shared_brokers: kafka.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailCluster]:
    cluster = MailCluster(_shared_brokers, tmp_path_factory.mktemp("cluster"))
    cluster.make_topics()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def mail_cluster(three_brokers: kafka.Cluster, _shared_cluster: MailCluster) -> MailCluster:
    """Two running processes of each role, whatever the previous test did to them."""
    assert _shared_cluster.brokers is three_brokers
    _shared_cluster.start()
    _shared_cluster.wait_for_owners()
    return _shared_cluster


@pytest.fixture
def round_number() -> Iterator[int]:
    """Counts cases over the whole run."""
    return _turns
