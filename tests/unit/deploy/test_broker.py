"""`broker.py up` when its only node has gone: one line that leads to the node's log."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.kafka import broker
from deploy.kafka.cluster import Cluster
from deploy.kafka.jars import BrokerError
from deploy.kafka.node import Node


def test_the_only_node_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "pid", 4711)  # it ran, and does not any more
    with pytest.raises(BrokerError) as told:
        broker._supervise(Cluster(1, tmp_path, base_port=9092))
    assert str(told.value) == f"the node exited: see {tmp_path}/node-1/log"
