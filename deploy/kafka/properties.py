"""A node's server.properties: KRaft combined mode, everything on 127.0.0.1, small, and as safe as our topics need it.

Pure. With three nodes every topic, Kafka's own included, has three replicas of which two must confirm; topics are
made by `eilpost topics create` and never by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ports:
    """What one node listens on."""

    client: int
    controller: int
    secure: int | None = None  # TLS and a log-in; and each of them alone:
    tls: int | None = None
    login: int | None = None


def server_properties(
    node: int,
    ports: Sequence[Ports],
    data: Path,
    *,
    more: Mapping[str, str],
) -> str:
    """The file of node `node`, counted from 1; `ports` are those of all nodes. `more` is put over it."""
    own, nodes = ports[node - 1], len(ports)
    replicas, confirming = (3, 2) if nodes >= 3 else (1, 1)
    listeners = {"PLAINTEXT": own.client, "CONTROLLER": own.controller}
    protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
    secured = (("SECURE", own.secure, "SASL_SSL"), ("TLS", own.tls, "SSL"), ("LOGIN", own.login, "SASL_PLAINTEXT"))
    for name, port, protocol in secured:
        if port is not None:
            listeners[name] = port
            protocols += f",{name}:{protocol}"
    settings: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": node,
        "controller.quorum.voters": ",".join(f"{i}@{HOST}:{p.controller}" for i, p in enumerate(ports, 1)),
        "controller.listener.names": "CONTROLLER",
        "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items()),
        "advertised.listeners": ",".join(
            f"{name}://{HOST}:{port}" for name, port in listeners.items() if name != "CONTROLLER"
        ),
        "listener.security.protocol.map": protocols,
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": data,
        # Safe: what eilpost's topics are checked for, as the default of every topic.
        "auto.create.topics.enable": "false",
        "default.replication.factor": replicas,
        "min.insync.replicas": confirming,
        "unclean.leader.election.enable": "false",
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": confirming,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": confirming,
        # Small and quick: a broker for a handful of clients on a machine with other work.
        "num.partitions": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.num.partitions": 4,
        "group.initial.rebalance.delay.ms": 0,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "num.replica.fetchers": 1,
        "num.recovery.threads.per.data.dir": 1,
        "background.threads": 2,
        "log.cleaner.threads": 1,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
    }
    return "".join(f"{key}={value}\n" for key, value in {**settings, **more}.items())
