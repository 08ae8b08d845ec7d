"""`broker.py up`: its first line, and the one line about the loss of its only node."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.kafka import broker, jars
from deploy.kafka.cluster import Cluster
from deploy.kafka.jars import BrokerError
from deploy.kafka.node import Node


def test_end_of_the_only_node_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "pid", 4711)  # the node started and has ended
    with pytest.raises(BrokerError) as raised:
        broker._supervise(Cluster(1, tmp_path, base_port=9092))
    assert str(raised.value) == f"the node exited: see {tmp_path}/node-1/log"


@pytest.mark.parametrize(("count", "text"), [(1, "1 node"), (3, "3 nodes")])
def test_start_is_printed_before_anything_slow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: int,
    text: str,
) -> None:
    def fail() -> None:
        raise BrokerError("the first slow step")

    monkeypatch.setattr(broker, "prepare_jars", fail)
    monkeypatch.setattr(jars, "are_fetched", lambda: True)
    with pytest.raises(BrokerError, match="the first slow step"):
        broker._up(count, tmp_path, 9092, secure=False)
    assert capsys.readouterr().out == f"Starting Kafka {jars.VERSION}, {text} ...\n"
