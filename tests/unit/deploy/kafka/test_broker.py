"""`broker.py up` after the loss of its only node: one line that names the node's log."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.kafka import broker
from deploy.kafka.cluster import Cluster
from deploy.kafka.jars import BrokerError
from deploy.kafka.node import Node


def test_end_of_the_only_node_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "pid", 4711)  # the node started and has ended
    with pytest.raises(BrokerError) as raised:
        broker._supervise(Cluster(1, tmp_path, base_port=9092))
    assert str(raised.value) == f"the node exited: see {tmp_path}/node-1/log"
