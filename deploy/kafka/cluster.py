"""Local Kafka cluster of one or three nodes, for tests and for `broker.py`.

Calls block until their effect is complete. All listeners are on 127.0.0.1, no broker outlives the process that started
it, and a folder's data stays for the next start.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import random
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deploy.kafka import jars
from deploy.kafka.jars import BrokerError
from deploy.kafka.metadata import live_brokers
from deploy.kafka.node import Node
from deploy.kafka.properties import HOST, Ports, server_properties
from deploy.kafka.secure import ClientCredentials, load_or_create
from eilpost.child_supervisor import ChildSupervisor

# Below the kernel's ephemeral ports, and apart from the ports of tests/support/servers/ports.py.
_FIRST, _LAST = 12_000, 20_000
_CONTROLLERS_ABOVE = 100
_SECURE_ABOVE = (200, 300, 400)
_TRIES = 5


class _PortTakenError(BrokerError):
    pass


class Cluster:
    """`nodes` brokers in `directory`, numbered from 1.

    Ports: `base_port`, `base_port + 1`, ... for clients (controllers 100 above, secured listeners 200, 300 and 400
    above), or free ones. `settings` override every server.properties. `secure` adds listeners with TLS and SASL, with
    TLS only and with SASL only; see `credentials` after the start. `optimized` uses Java's optimizing compiler, for
    measurements: the start takes seconds longer. `archive` is for `prepare_jars`.
    """

    def __init__(
        self,
        nodes: int,
        directory: Path,
        *,
        base_port: int | None = None,
        secure: bool = False,
        settings: Mapping[str, str] | None = None,
        heap: str = "384m",
        optimized: bool = False,
        archive: Sequence[str] = (),
    ) -> None:
        if nodes < 1:
            raise BrokerError("a cluster needs at least one node")
        self.directory = directory.absolute()
        self.credentials: ClientCredentials | None = None
        self._secure = secure
        self._base_port = base_port
        self._ports = _ports(nodes, base_port, secure=secure)
        self._settings = dict(settings or {})
        self._archive = archive
        self._supervisor: ChildSupervisor | None = None
        self.nodes = tuple(
            Node(number, self.directory / f"node-{number}", heap=heap, optimized=optimized)
            for number in range(1, nodes + 1)
        )

    @property
    def bootstrap(self) -> str:
        """Client addresses: "127.0.0.1:9092,127.0.0.1:9093,..."."""
        return self.addresses("client")

    def addresses(self, listener: str) -> str:
        """The addresses of a listener: "client", "secure" (TLS and SASL), "tls" (TLS only), "login" (SASL only)."""
        ports = (getattr(each, listener) for each in self._ports)
        return ",".join(f"{HOST}:{port}" for port in ports if port is not None)

    def node(self, number: int) -> Node:
        """Node `number`, from 1, which is also its broker id."""
        return self.nodes[number - 1]

    def port(self, number: int) -> int:
        """Port of node `number` for unencrypted clients."""
        return self._ports[number - 1].client

    def alive(self, *, observer: int | None = None) -> frozenset[int]:
        """The brokers that node `observer`, or the first responding one, lists as alive; empty when no node responds.

        A killed or frozen broker is listed for another `broker.session.timeout.ms`, 9 s by default.
        """
        numbers = [observer] if observer else [node.number for node in self.nodes if node.running()]
        listings = (frozenset(live_brokers(self.port(number))) for number in numbers)
        return next((listing for listing in listings if listing), frozenset())

    def start(self, *, timeout_seconds: float = 90.0) -> None:
        """Start every stopped node, and wait until each serves and lists all as alive. Raises BrokerError."""
        jars.fetch()
        for tries_left in range(_TRIES - 1, -1, -1):
            try:
                self._check_ports()
                self._write_files()
                for node in self.nodes:
                    node.start(self._process_group(), archive=self._archive)
                self.wait_ready(timeout_seconds=timeout_seconds)
                return
            except _PortTakenError:
                self.stop(timeout_seconds=0)
                if self._base_port is not None or not tries_left:
                    raise
                # Another process took a port first: retry with other ports.
                self._ports = _ports(len(self.nodes), None, secure=self._secure)
            except BaseException:
                self.stop(timeout_seconds=0)
                raise

    def restart(self, number: int, *, timeout_seconds: float = 60.0) -> None:
        """Stop node `number` if it runs, start it again, and wait until it serves."""
        self.node(number).terminate()
        self.node(number).start(self._process_group())
        self.wait_ready([number], timeout_seconds=timeout_seconds)

    def wait_ready(self, numbers: Iterable[int] | None = None, *, timeout_seconds: float = 60.0) -> None:
        """Return when each of these nodes (default: all) lists all of them as alive. Raises BrokerError."""
        expected = frozenset(numbers or (node.number for node in self.nodes))
        deadline = time.monotonic() + timeout_seconds
        not_ready = set(expected)
        while not_ready:
            not_ready -= {number for number in not_ready if self.alive(observer=number) >= expected}
            for number in not_ready:
                self._check_start(self.node(number), in_time=time.monotonic() < deadline)
            time.sleep(0.05)

    def stop(self, *, timeout_seconds: float = 10.0) -> None:
        """Stop all nodes by SIGTERM, and by SIGKILL after the time-out. The folder stays."""
        deadline = time.monotonic() + timeout_seconds
        if timeout_seconds > 0:
            for node in self.nodes:
                node.request_stop()
        for node in self.nodes:
            node.wait_until_ended(max(0.0, deadline - time.monotonic()))
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _process_group(self) -> int:
        """Process group of the supervisor, which kills all brokers when this process ends."""
        if self._supervisor is None:
            self._supervisor = ChildSupervisor()
        return self._supervisor.process_group

    def _write_files(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = dict(self._settings)
        if self._secure:
            self.credentials = load_or_create(self.directory / "secure")
            settings = {**self.credentials.settings(), **settings}
        for node in self.nodes:
            node.folder.mkdir(exist_ok=True)
            properties = server_properties(node.number, self._ports, node.data, overrides=settings)
            path = node.folder / "server.properties"
            path.touch(mode=0o600)
            path.write_text(properties)
        _format_nodes(self.directory, self.nodes, self.credentials)

    def _check_ports(self) -> None:
        for node, ports in zip(self.nodes, self._ports, strict=True):
            for port in ports:
                if port is not None and not node.running() and _is_port_taken(port):
                    raise _PortTakenError(f"another process listens on {HOST}:{port}, which node {node.number} needs")

    def _check_start(self, node: Node, *, in_time: bool) -> None:
        if in_time and node.running():
            return
        log = node.log_of_this_start()
        if "Address already in use" in log:
            raise _PortTakenError(f"another process listens on a port of node {node.number}: {self.bootstrap}")
        state = "does not serve" if node.running() else "exited"
        raise BrokerError(f"node {node.number} {state}; {node.log_path} ends: {log[-1500:].strip()}")


def _is_port_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _ports(nodes: int, base: int | None, *, secure: bool) -> list[Ports]:
    if base is not None:
        return [
            Ports(port, port + _CONTROLLERS_ABOVE, *(port + above for above in _SECURE_ABOVE if secure))
            for port in range(base, base + nodes)
        ]
    free: set[int] = set()
    while len(free) < 5 * nodes:
        port = random.SystemRandom().randint(_FIRST, _LAST)
        if not _is_port_taken(port):
            free.add(port)
    return [Ports(*(free.pop() for _ in range(5 if secure else 2))) for _ in range(nodes)]


def _format_nodes(folder: Path, nodes: Sequence[Node], credentials: ClientCredentials | None) -> None:
    """Format the data folders that are not formatted yet, by Kafka's StorageTool. Raises BrokerError."""
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
        if not (node.data / "meta.properties").exists()
    ]
    results = [(process.communicate()[0], process.returncode) for process in started]
    for text, status in results:
        if status != 0:
            raise BrokerError(f"Kafka's StorageTool: {text.strip()[-1500:]}")


def _cluster_id(folder: Path, *, nodes: int, secure: bool) -> str:
    """The id in the folder, which also records the number of nodes and whether it is secured. Other values of a start
    are refused.
    """
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


def prepare_jars() -> Path:
    """Fetch the jars and create Java's class archive (AppCDS), if missing; returns their folder. Raises BrokerError.

    The archive halves the start time of a node; a broker also starts without it. It takes some seconds, once per set of
    jars and Java version: one broker is started and stopped.
    """
    folder = jars.fetch()
    archive = jars.archive_path()
    if archive.exists():
        return folder
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            _create_archive(archive)
    return folder


def _create_archive(archive: Path) -> None:
    part = archive.with_suffix(".part")
    part.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="eilpost-kafka-") as data:
        cluster = Cluster(1, Path(data), archive=[f"-XX:ArchiveClassesAtExit={part}"])
        try:
            cluster.start()
        finally:
            # Java writes the archive when the broker exits, which takes longer.
            cluster.stop(timeout_seconds=60)
    with contextlib.suppress(FileNotFoundError):
        part.rename(archive)
