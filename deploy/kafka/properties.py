"""server.properties of a node: KRaft combined mode on 127.0.0.1, small, and safe enough for eilpost's topics. Pure.

With three nodes every topic, including Kafka's own, has three replicas, of which two must confirm. Topics are created
by `eilpost topics create` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"


class Ports(NamedTuple):
    """Listener ports of one node."""

    client: int
    controller: int
    secure: int | None = None  # TLS and SASL; the next ones have TLS only and SASL only
    tls: int | None = None
    login: int | None = None


def server_properties(node: int, ports: Sequence[Ports], data: Path, *, overrides: Mapping[str, str]) -> str:
    """server.properties of node `node`, counted from 1; `ports` are those of all nodes."""
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
        # Safe: the defaults of every topic pass the checks of eilpost's topics.
        "auto.create.topics.enable": "false",
        "default.replication.factor": replicas,
        "min.insync.replicas": confirming,
        "unclean.leader.election.enable": "false",
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": confirming,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": confirming,
        # Small and quick: for a few clients, on a machine with other work.
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
    return "".join(f"{key}={value}\n" for key, value in {**settings, **overrides}.items())
