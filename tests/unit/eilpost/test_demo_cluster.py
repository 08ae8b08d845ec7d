"""The demo on a cluster: a start that cannot succeed is one line with the remedy; the commands that it prints."""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
from contextlib import ExitStack

import pytest

from eilpost import demo, demo_cluster
from tests.support.clients.commands import Run, refused
from tests.support.servers.ports import free_port, free_ports_from

PORTS = range(11)


def _start(run: Run, broker: int, first: int) -> str:
    """The error line of `make cluster`."""
    return refused(run("demo", "--cluster", "--brokers", f"kafka://127.0.0.1:{broker}", "--port", str(first)))


def test_ports_in_use_are_named_before_brokers_are_awaited(run: Run) -> None:
    first = free_ports_from(*PORTS)
    with socket.create_server(("127.0.0.1", first + 2)), socket.create_server(("127.0.0.1", first + 9)):
        line = _start(run, free_port(), first)
    assert line.startswith(f"eilpost: 127.0.0.1:{first + 2}, 127.0.0.1:{first + 9}: in use, perhaps by `make run`;")


def test_a_second_cluster_says_that_the_first_keeps_running(run: Run) -> None:
    first = free_ports_from(*PORTS)
    with ExitStack() as servers:
        for port in PORTS:
            servers.enter_context(socket.create_server(("127.0.0.1", first + port)))
        line = _start(run, free_port(), first)
    assert line.startswith("eilpost: a demo cluster runs already and keeps running: ")
    assert "stopped" not in line


def test_missing_brokers_are_started_by_make_kafka(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_cluster, "BROKERS_SECONDS", 0)
    broker = free_port()
    assert _start(run, broker, free_ports_from(*PORTS)) == (
        f"eilpost: 127.0.0.1:{broker} refuses the connection: start the brokers with `make kafka NODES=3`; see also"
        " `eilpost doctor --config var/demo-cluster/eilpost.toml`\n"
    )


def test_an_address_without_a_broker_is_refused_at_once(run: Run) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:  # it closes connections
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            line = _start(run, server.server_address[1], free_ports_from(*PORTS))
        finally:
            server.shutdown()
            thread.join()
    assert " is not a Kafka broker: correct log.url; see also `eilpost doctor --config " in line


@pytest.mark.parametrize(
    ("started_as", "command"),
    [
        (".venv/bin/eilpost", ".venv/bin/eilpost"),
        ("/opt/my tools/eilpost", "'/opt/my tools/eilpost'"),
        ("eilpost", "eilpost"),
        ("/opt/eilpost/__main__.py", f"{sys.executable} -m eilpost"),
    ],
)
def test_printed_commands_begin_as_the_demo_was_started(
    monkeypatch: pytest.MonkeyPatch, started_as: str, command: str
) -> None:
    monkeypatch.setattr(sys, "argv", [started_as, "demo"])
    assert demo.program() == command
