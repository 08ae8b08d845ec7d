"""A real Apache Kafka for tests: the address one gives us, else a container, else Java and Maven by `deploy/kafka`.

`why_missing` says why there is none; `shared()` starts one single-node broker for a whole run, when the first test
needs it; `three_nodes()` makes a cluster a test may break. Everything is on free ports of 127.0.0.1, and any number of
runs may go on at the same time.
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

from deploy.kafka import archive, jars
from deploy.kafka.cluster import Cluster
from deploy.kafka.question import live_brokers
from tests.support.servers.ports import free_port

GIVEN_BOOTSTRAP = "EILPOST_TEST_KAFKA"
# For `settings`: a dead broker is noticed in 4 s and may come back then; by default that takes 9.
QUICK = {"broker.session.timeout.ms": "4000", "broker.heartbeat.interval.ms": "500"}
_STOCK = {"auto.create.topics.enable": "true"}
_IMAGE = f"apache/kafka:{jars.VERSION}"
_LOCAL = ("127.0.0.1", "localhost")


@functools.cache
def why_missing() -> str | None:
    """Why no broker can be had here, for people; None when one can."""
    given = os.environ.get(GIVEN_BOOTSTRAP)
    if given:
        if any(address.rpartition(":")[0] not in _LOCAL for address in given.split(",")):
            return f"{GIVEN_BOOTSTRAP} has to be on 127.0.0.1, as no test leaves this machine (forward a port)"
        if not any(live_brokers(int(address.rpartition(":")[2])) for address in given.split(",")):
            return f"nothing answers at {GIVEN_BOOTSTRAP}={given}"
        return None
    return None if _docker_answers() else why_no_cluster()


def why_no_cluster() -> str | None:
    """Why no three brokers that a test may kill can be had here: only `deploy/kafka` has them."""
    return _could_not_fetch[0] if _could_not_fetch else jars.why_missing()


_could_not_fetch: list[str] = []


def prepare() -> None:
    """Fetch what takes long and is needed once, before any test's time runs; called when some test needs it."""
    if why_no_cluster() is None:
        try:
            archive.prepare()
        except jars.BrokerError as error:
            _could_not_fetch.append(str(error))
            why_missing.cache_clear()


@contextlib.contextmanager
def shared() -> Iterator[str]:
    """The address of one broker that all tests share: they name topics and groups as nobody else does."""
    given = os.environ.get(GIVEN_BOOTSTRAP)
    if given:
        yield given
    elif _docker_answers():
        with container() as bootstrap:
            yield bootstrap
    else:
        with cluster(1) as one:
            yield one.bootstrap


@contextlib.contextmanager
def cluster(nodes: int, *, secure: bool = False, settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A running cluster of one's own by `deploy/kafka`; its folder is removed at the end. As Kafka comes, it makes
    topics that are asked for and missing: nothing of ours may ask like that.
    """
    folder = Path(tempfile.mkdtemp(prefix="eilpost-kafka-"))
    made = Cluster(nodes, folder, secure=secure, settings={**_STOCK, **(settings or {})})
    try:
        made.start()
        yield made
    finally:
        # Nobody reads its data again, so nothing is handed over.
        made.stop(timeout_seconds=0)
        shutil.rmtree(folder, ignore_errors=True)


class ClusterFactory(Protocol):
    """What the fixture `kafka_cluster` gives: `cluster` above, ended with the test."""

    def __call__(
        self, nodes: int = 3, *, secure: bool = False, settings: Mapping[str, str] | None = None
    ) -> Cluster: ...


@functools.cache
def _docker_answers() -> bool:
    if not (os.environ.get("DOCKER_HOST") or Path("/var/run/docker.sock").exists()):
        return False
    import docker  # type: ignore[import-untyped,unused-ignore]  # only here: it takes half a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves a socket open where nothing answers
        try:
            with contextlib.closing(docker.from_env(timeout=5)) as client:
                return bool(client.ping())
        except Exception:  # whatever it is, that engine is none for us
            return False
        finally:
            gc.collect()


@contextlib.contextmanager
def container(image: str = _IMAGE) -> Iterator[str]:
    """`apache/kafka` in KRaft mode: the address of the broker. Its port inside the container is the published one."""
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
    made: Any = DockerContainer(image)
    made.ports[f"{port}/tcp"] = ("127.0.0.1", port)
    for name, value in environment.items():
        made = made.with_env(name, value)
    with made:
        end = time.monotonic() + 60
        while not live_brokers(port):
            if time.monotonic() > end:
                raise RuntimeError(f"{image} does not answer on port {port}")
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
