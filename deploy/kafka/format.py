"""Cluster id and formatting of the nodes' data folders, by Kafka's StorageTool.

The folder records the number of nodes and whether it is secured; a start with other values is refused.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploy.kafka.jars import BrokerError
from deploy.kafka.node import Node
from deploy.kafka.secure import ClientCredentials

_FORMATTED = "meta.properties"


def format_nodes(folder: Path, nodes: Sequence[Node], credentials: ClientCredentials | None) -> None:
    """Format the nodes that are not formatted yet. Raises BrokerError."""
    cluster_id = _cluster_id(folder, nodes=len(nodes), secure=credentials is not None)
    users: list[str] = []
    if credentials is not None:
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            users += ["--add-scram", f"{mechanism}=[name={credentials.user},password={credentials.password}]"]
    started = [
        subprocess.Popen(
            node.java(
                "kafka.tools.StorageTool",
                *("format", "--cluster-id", cluster_id, "--config", str(node.folder / "server.properties"), *users),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in nodes
        if not (node.data / _FORMATTED).exists()
    ]
    results = [(process.communicate()[0], process.returncode) for process in started]
    for text, status in results:
        if status != 0:
            raise BrokerError(f"Kafka's StorageTool: {text.strip()[-1500:]}")


def _cluster_id(folder: Path, *, nodes: int, secure: bool) -> str:
    path = folder / "cluster.json"
    if path.exists():
        saved = json.loads(path.read_text())
        if (saved["nodes"], saved["secure"]) != (nodes, secure):
            raise BrokerError(
                f"{folder} was created with nodes: {saved['nodes']}, secure: {saved['secure']}. "
                "Start it with these values, delete it, or use another folder"
            )
        return str(saved["id"])
    # Kafka's form of a UUID; its tools parse one that begins with a dash as an option.
    cluster_id = "-"
    while cluster_id.startswith("-"):
        cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).rstrip(b"=").decode()
    path.write_text(json.dumps({"id": cluster_id, "nodes": nodes, "secure": secure}))
    return cluster_id
