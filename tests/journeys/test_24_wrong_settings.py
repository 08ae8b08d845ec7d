"""Journey 24: wrong settings of a log on Kafka are one-line errors; correct ones work over TLS and with SASL.

Every mistake is one line on stderr that names the key and the remedy, exit status 2, within 20 seconds, without output
of a library. Unreachable brokers end a command; servers wait for them (journey 32).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deploy.kafka.cluster import Cluster
from mail.log.kafka import KafkaHistory
from mail.log.kafka.access import make_access
from mail.settings import LogSettings
from tests.support.builders import records as samples
from tests.support.clients.commands import Run, commands, refused, secured_log
from tests.support.servers import kafka
from tests.support.servers.kafka_log import running, settings_on


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    with commands(tmp_path, monkeypatch, capsys) as call:
        yield call


@contextmanager
def _other_server(greeting: bytes) -> Iterator[str]:
    """Accepts connections, sends a greeting, and nothing more."""
    peers = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def welcome() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    peers.append(peer)
                    peer.sendall(greeting)

        thread = threading.Thread(target=welcome, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for peer in peers:
                peer.close()


# --- no Kafka


@pytest.mark.parametrize("command", [("topics", "create"), ("topics", "check"), ("queue",)])
def test_port_without_listener_is_a_one_line_error(run: Run, command: tuple[str, ...]) -> None:
    line = refused(run(*command, log={"url": "kafka://127.0.0.1:1,127.0.0.1:2"}))
    assert "log.url: 127.0.0.1:1 refuses the connection: start a broker there, or correct log.url (and 1 more" in line


def test_unresolvable_host_is_a_one_line_error(run: Run) -> None:
    line = refused(run("queue", log={"url": "kafka://no-such-host.invalid:9092"}))
    assert "log.url: no-such-host.invalid:9092 cannot be resolved" in line


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("greeting", "says"), [(b"220 mx.example.test ESMTP\r\n", "Kafka broker"), (b"", "")], ids=["smtp", "mute"]
)
def test_listener_that_is_not_kafka_is_a_one_line_error(run: Run, greeting: bytes, says: str, tls: bool) -> None:
    with _other_server(greeting) as where:
        line = refused(run("router" if greeting else "queue", log={"url": f"kafka://{where}", "tls": tls}))
    assert "log.url: 127.0.0.1:" in line
    assert says in line


def test_missing_certificate_is_a_one_line_error(run: Run) -> None:
    line = refused(run("router", log={"url": "kafka://127.0.0.1:1", "tls": True, "tls_ca": "nix.pem"}))
    assert "log.tls_ca: " in line
    assert "nix.pem" in line


# --- a secured listener


@pytest.fixture(scope="module")
def secured_node() -> Iterator[Cluster]:
    with kafka.cluster(1, secure=True) as cluster:
        yield cluster


@pytest.mark.kafka_cluster
@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"sasl_password": "not-this-one"}, "log.sasl_username, log.sasl_password", "refuses the credentials"),
        ({"sasl_password": "not-this-one", "sasl_mechanism": "PLAIN"}, "log.sasl_username", "refuses the credentials"),
        ({"sasl_mechanism": "SCRAM-SHA-512"}, "log.sasl_mechanism", "does not support SCRAM-SHA-512"),
        ({"sasl_mechanism": "", "sasl_username": ""}, "log.sasl_mechanism", "requires authentication"),
        ({"tls_ca": ""}, "log.tls_ca", "cannot be trusted"),
        ({"tls": False}, "log.tls", "uses TLS: set log.tls = true"),
    ],
)
def test_rejection_by_a_secured_listener_is_a_one_line_error(
    run: Run, secured_node: Cluster, changes: dict[str, Any], key: str, says: str
) -> None:
    line = refused(run("router", log=secured_log(secured_node, **changes)))
    assert f" {key}" in line
    assert says in line
    assert "not-this-one" not in line
    assert secured_node.credentials is not None
    assert secured_node.credentials.password not in line


@pytest.mark.kafka_cluster
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "log.tls: {where} does not use TLS: set log.tls = false"),
        ({"tls": False}, "log.sasl_mechanism: {where} does not use authentication"),
    ],
)
def test_plain_listener_instead_of_a_secured_one_is_a_one_line_error(
    run: Run, secured_node: Cluster, changes: dict[str, Any], says: str
) -> None:
    where = secured_node.bootstrap
    line = refused(run("router", log=secured_log(secured_node, url=f"kafka://{where}", **changes)))
    assert says.format(where=where) in line


@pytest.mark.kafka_cluster
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN"])
async def test_log_over_tls_with_sasl_stores_and_returns_records(secured_node: Cluster, mechanism: str) -> None:
    assert secured_node.credentials is not None
    certificate = {
        "tls_cert": str(secured_node.credentials.client_certificate),
        "tls_key": str(secured_node.credentials.client_key),
    }
    shown = LogSettings.model_validate(secured_log(secured_node, sasl_mechanism=mechanism, **certificate))
    settings = settings_on(secured_node.addresses("secure"), shown, shards=1, delivery_shards=1)
    event = samples.event(time=datetime.now(UTC))
    async with running(settings) as log:
        await log.append(samples.accepted())
        await log.append(event)
        assert await log.unrouted_messages(samples.queue_id(1)) == [samples.accepted()]
        assert [each async for each in KafkaHistory(settings).history(samples.queue_id(1))] == [event]
    for text in (repr(make_access(settings)), repr(settings), str(settings)):
        assert secured_node.credentials.password not in text


@pytest.mark.kafka_cluster
@pytest.mark.parametrize("how", ["tls", "login"])
async def test_log_with_tls_only_or_sasl_only_stores_and_returns_a_message(secured_node: Cluster, how: str) -> None:
    changes: dict[str, Any] = {"sasl_mechanism": "", "sasl_username": "", "sasl_password": ""}
    where = secured_node.addresses("tls")
    if how == "login":
        changes = {"tls": False, "tls_ca": "", "sasl_mechanism": "SCRAM-SHA-512"}
        where = secured_node.addresses("login")
    section = secured_log(secured_node, url=f"kafka://{where}", **changes)
    settings = settings_on(where, LogSettings.model_validate(section), shards=1, delivery_shards=1)
    async with running(settings) as log:
        await log.append(samples.accepted())
        assert await log.unrouted_messages(samples.queue_id(1)) == [samples.accepted()]
