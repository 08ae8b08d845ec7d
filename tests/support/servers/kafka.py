"""Real Apache Kafka for tests: a given address, a container, or Java and Maven by `deploy/kafka`.

`why_missing` gives the reason when there is none, `shared()` starts one single-node broker per run, and `cluster()`
starts a cluster that a test may break. Everything uses free ports of 127.0.0.1, so runs can be concurrent.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from deploy.kafka import jars
from deploy.kafka.cluster import Cluster, prepare_jars
from deploy.kafka.metadata import live_brokers
from tests.support.servers.ports import free_port

GIVEN_BOOTSTRAP = "EILPOST_TEST_KAFKA"
# For `settings`: a dead broker is detected after 4 s, not 9 s (default), and may restart then.
QUICK = {"broker.session.timeout.ms": "4000", "broker.heartbeat.interval.ms": "500"}
_STOCK = {"auto.create.topics.enable": "true"}
_IMAGE = f"apache/kafka:{jars.VERSION}"
_LOCAL = ("127.0.0.1", "localhost")


@functools.cache
def why_missing() -> str | None:
    """Why no broker is available here, for people; None when one is."""
    bootstrap = os.environ.get(GIVEN_BOOTSTRAP)
    if bootstrap:
        if any(address.rpartition(":")[0] not in _LOCAL for address in bootstrap.split(",")):
            return f"{GIVEN_BOOTSTRAP} has to be on 127.0.0.1, as no test leaves this machine (forward a port)"
        if not any(live_brokers(int(address.rpartition(":")[2])) for address in bootstrap.split(",")):
            return f"no server responds at {GIVEN_BOOTSTRAP}={bootstrap}"
        return None
    return None if _docker_answers() else why_no_cluster()


def why_no_cluster() -> str | None:
    """Why no cluster of three brokers that a test may kill is available: only `deploy/kafka` provides it."""
    return _could_not_fetch[0] if _could_not_fetch else jars.why_missing()


_could_not_fetch: list[str] = []


def prepare() -> None:
    """Fetch the jars and create the archive before any test's time-out runs; called when a test needs them."""
    if why_no_cluster() is None:
        try:
            prepare_jars()
        except jars.BrokerError as error:
            _could_not_fetch.append(str(error))
            why_missing.cache_clear()


@contextlib.contextmanager
def shared() -> Iterator[str]:
    """Address of the broker that all tests share; each test uses unique topics and groups."""
    bootstrap = os.environ.get(GIVEN_BOOTSTRAP)
    if bootstrap:
        yield bootstrap
    elif _docker_answers():
        with container() as bootstrap:
            yield bootstrap
    else:
        with cluster(1) as one:
            yield one.bootstrap


@contextlib.contextmanager
def cluster(nodes: int, *, secure: bool = False, settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster for one test by `deploy/kafka`; its folder is deleted afterwards. With Kafka's defaults it creates
    missing topics that a client requests, which eilpost's clients must not do.
    """
    folder = Path(tempfile.mkdtemp(prefix="eilpost-kafka-"))
    running = Cluster(nodes, folder, secure=secure, settings={**_STOCK, **(settings or {})})
    try:
        running.start()
        yield running
    finally:
        # The data is not read again, so a graceful shutdown is unnecessary.
        running.stop(timeout_seconds=0)
        shutil.rmtree(folder, ignore_errors=True)


class ClusterFactory(Protocol):
    """Type of the fixture `kafka_cluster`: `cluster` above, stopped at the end of the test."""

    def __call__(
        self, nodes: int = 3, *, secure: bool = False, settings: Mapping[str, str] | None = None
    ) -> Cluster: ...


@functools.cache
def _docker_answers() -> bool:
    if not (os.environ.get("DOCKER_HOST") or Path("/var/run/docker.sock").exists()):
        return False
    import docker  # type: ignore[import-untyped,unused-ignore]  # takes half a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # docker leaves a socket open when there is no response
        try:
            with contextlib.closing(docker.from_env(timeout=5)) as client:
                return bool(client.ping())
        except Exception:  # any error means that the engine is unusable
            return False
        finally:
            gc.collect()


@contextlib.contextmanager
def container(image: str = _IMAGE) -> Iterator[str]:
    """`apache/kafka` in KRaft mode; yields the broker's address. The port inside the container is the published one."""
    from testcontainers.core.container import DockerContainer

    port = free_port()
    environment = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": f"PLAINTEXT://0.0.0.0:{port},CONTROLLER://127.0.0.1:19093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "PLAINTEXT",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@127.0.0.1:19093",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "true",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "4",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "4",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_HEAP_OPTS": "-Xmx384m",
    }
    running: Any = DockerContainer(image)
    running.ports[f"{port}/tcp"] = ("127.0.0.1", port)
    for name, value in environment.items():
        running = running.with_env(name, value)
    with running:
        end = time.monotonic() + 60
        while not live_brokers(port):
            if time.monotonic() > end:
                raise RuntimeError(f"{image} does not respond on port {port}")
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
