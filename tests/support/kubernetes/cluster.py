"""A running one-node Kubernetes in its own namespaces, with kubectl and helm.

Blocking calls. `log(NAME)` is the output of a component.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.golang import GoProgram
from tests.support.kubernetes import broker, configuration, manifests
from tests.support.kubernetes.certificates import Authority
from tests.support.kubernetes.configuration import HOST, NODE, OUTSIDE, Layout
from tests.support.kubernetes.images import write_archive
from tests.support.kubernetes.namespaces import PREFIX, Namespaces, remove_stale
from tests.support.kubernetes.programs import HELM, PAUSE
from tests.support.kubernetes.programs import NODE as BINARY

_PARENT = Path(tempfile.gettempdir())
_OUTSIDE_NETWORK = "outside"


class CommandError(Exception):
    """A failed command; the text is its output."""


class Kubernetes:
    """One cluster. `images`: archives in `docker save` format; no other image can be pulled."""

    def __init__(self, images: Sequence[Path] = ()) -> None:
        remove_stale(_PARENT)
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_PARENT))
        self.namespaces = Namespaces(self.folder)
        self.at = Layout(self.folder, self.namespaces.cgroup)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._images = images
        self.home = self.folder / "home"
        self._commands = self.folder / "bin"  # kubectl and helm as a user has them
        self._environment = {
            "PATH": f"{self._commands}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "KUBECONFIG": str(self.at.kubeconfig("admin")),
        }

    # --- up and down -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Kubernetes:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return when the node is ready and metrics can be queried."""
        (self.folder / "logs").mkdir()
        self.home.mkdir()
        self._commands.mkdir()
        (self._commands / "helm").symlink_to(HELM.path)
        (self._commands / "kubectl").write_text(f'#!/bin/sh\nexec "{BINARY.path}" kubectl "$@"\n')
        (self._commands / "kubectl").chmod(0o755)
        _issue(self.at)
        configuration.write(self.at)
        self._network()
        binary = str(BINARY.path)
        self.spawn("etcd", binary, *configuration.etcd(self.at))
        self.spawn("kube-apiserver", binary, *configuration.api_server(self.at))
        self.spawn("containerd", "containerd", "--config", f"{self.at.conf}/containerd.toml")
        pause = self.folder / "pause.tar"
        write_archive(pause, configuration.PAUSE_IMAGE, {"/pause": PAUSE.path}, ["/pause"])
        self.until("containerd answers", lambda: self._ctr("version"))
        for archive in (pause, *self._images):
            self.import_image(archive)
        self.until("the API server is ready", lambda: self.kubectl("get", "--raw", "/readyz"))
        self.spawn("kube-controller-manager", binary, *configuration.controller_manager(self.at))
        self.spawn("kube-scheduler", binary, *configuration.scheduler(self.at))
        self.spawn("kubelet", binary, *configuration.kubelet(self.at))
        self.spawn("kube-proxy", binary, *configuration.kube_proxy(self.at))
        self.spawn("coredns", binary, *configuration.coredns(self.at))
        self.spawn("metrics-server", binary, *configuration.metrics_server(self.at))
        self.apply(manifests.METRICS)
        self.until("the node is there", lambda: self.kubectl("get", "node", NODE))
        self.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=60s", timeout=70)
        self._account("default")

    def add_volumes(self, count: int) -> None:
        """PersistentVolumes for any claim of the default storage class."""
        folder = self.folder / "volumes"
        for number in range(count):
            (folder / str(number)).mkdir(parents=True)
        self.apply(manifests.local_volumes(str(folder), count))

    def add_kafka(self) -> None:
        """A broker at `HOST`, also reachable by the Service `kafka` of the namespace `kafka`."""
        folder = self.folder / "kafka"
        self.spawn("kafka", *broker.command(folder))
        self.apply([manifests.namespace("kafka"), *manifests.outside_service("kafka", "kafka", broker.PORT)])
        self.until("Kafka serves", lambda: broker.ready(folder))

    def stop(self) -> None:
        """End every process and remove all files. Idempotent."""
        self.namespaces.close()
        for process in self._processes.values():
            process.wait(10)

    def _network(self) -> None:
        """The node's interface and default route, and at their other end a network namespace for outside clients."""
        self._run_in_namespaces("ip", "netns", "add", _OUTSIDE_NETWORK)
        lines = (
            "ip link set lo up",
            f"ip link add node0 type veth peer name node0p netns {_OUTSIDE_NETWORK}",
            f"ip -n {_OUTSIDE_NETWORK} addr add {OUTSIDE}/24 dev node0p",
            f"ip -n {_OUTSIDE_NETWORK} link set node0p up",
            "ip link set node0 up",
            f"ip addr add {HOST}/24 dev node0",
            "ip route add default dev node0",
        )
        for line in lines:
            self._run_in_namespaces(*line.split())

    # --- processes ---------------------------------------------------------------------------------------------------

    def log(self, name: str) -> str:
        path = self.folder / "logs" / name
        return path.read_text(errors="replace") if path.exists() else ""

    def spawn(self, name: str, *command: str, **environment: str) -> None:
        """Start a process in the namespaces. It ends with them at the latest."""
        with (self.folder / "logs" / name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self.namespaces.enter(*command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._environment, **environment},
                process_group=0,
            )

    def end(self, name: str) -> None:
        """End a process that `spawn` started."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)

    def run(
        self,
        *command: str,
        stdin: str | None = None,
        timeout: float = 60.0,
        status: int | None = 0,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command in the cluster's network; returns its standard output.

        Raises CommandError for another exit status, unless `status` is None.
        """
        done = subprocess.run(
            self.namespaces.enter(*command, network_only=True),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            env={**self._environment, **(environment or {})},
            timeout=timeout,
        )
        if status is not None and done.returncode != status:
            shown = " ".join(Path(word).name if "/" in word else word for word in command)
            raise CommandError(f"{shown}: exit status {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
        return done.stdout

    def run_outside(self, *command: str) -> str:
        """Run a command on a machine outside the cluster, with the address `OUTSIDE`; returns its standard output."""
        return self._run_in_namespaces("ip", "netns", "exec", _OUTSIDE_NETWORK, *command)

    def _run_in_namespaces(self, *command: str, timeout: float = 60.0) -> str:
        done = subprocess.run(self.namespaces.enter(*command), capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            raise CommandError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def until(self, what: str, attempt: Callable[[], object], timeout: float = 60.0) -> Any:
        """Repeat `attempt` until it returns a true value without a CommandError; returns that value."""
        end = time.monotonic() + timeout
        last: object = None
        while time.monotonic() < end:
            dead = [name for name, process in self._processes.items() if process.poll() not in (None, 0)]
            if dead:
                raise CommandError(f"{dead[0]} ended: {self.log(dead[0])[-2000:]}")
            try:
                last = attempt()
            except CommandError as error:
                last = error
            else:
                if last:
                    return last
            time.sleep(0.2)
        raise CommandError(f"waited {timeout:.0f} s until {what}; the last answer: {last}")

    @contextlib.contextmanager
    def forwarded(self, name: str, target: str, port: int, namespace: str) -> Iterator[int]:
        """`kubectl port-forward` to `target`; yields the port on 127.0.0.1 in the cluster's network."""
        arguments = ("--namespace", namespace, "port-forward", target, f":{port}")
        self.spawn(name, str(BINARY.path), "kubectl", *arguments)
        try:
            found = self.until("the port is forwarded", lambda: re.search(r"127\.0\.0\.1:(\d+) ->", self.log(name)))
            yield int(found[1])
        finally:
            self.end(name)
            (self.folder / "logs" / name).unlink()

    # --- containers --------------------------------------------------------------------------------------------------

    def _ctr(self, *arguments: str, timeout: float = 60.0) -> str:
        return self.run("ctr", "--address", str(self.at.containerd_socket), *arguments, timeout=timeout)

    def import_image(self, archive: Path) -> None:
        ctr = ("ctr", "--address", str(self.at.containerd_socket), "--namespace", "k8s.io")
        self._run_in_namespaces(*ctr, "images", "import", str(archive), timeout=120)

    def task(self, *arguments: str) -> str:
        """Run `ctr tasks` with these arguments: list the containers, or kill, pause or resume the processes of one."""
        return self._ctr("--namespace", "k8s.io", "tasks", *arguments)

    # --- kubectl and helm --------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, **how: Any) -> str:
        return self.run(str(BINARY.path), "kubectl", *arguments, **how)

    def popen_kubectl(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `kubectl` in the cluster's network, with its standard output in a pipe."""
        command = self.namespaces.enter(str(BINARY.path), "kubectl", *arguments, network_only=True)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
        )

    def helm(self, *arguments: str, program: GoProgram = HELM, **how: Any) -> str:
        return self.run(str(program.path), *arguments, **how)

    def apply(self, objects: Iterable[dict[str, Any]]) -> None:
        """Create or change these objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    def get(self, *arguments: str, namespace: str = "default") -> Any:
        """The result of `kubectl get`, as plain values."""
        return json.loads(self.kubectl("--namespace", namespace, "get", "-o", "json", *arguments))

    @contextlib.contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """A namespace for pods of the restricted Pod Security Standard only; deleted at the end."""
        self.apply([manifests.namespace(name)])
        self._account(name)
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")

    def _account(self, namespace: str) -> None:
        """Wait for the namespace's service account, without which pods are refused."""
        find = ("--namespace", namespace, "get", "serviceaccount", "default")
        self.until(f"{namespace} has a service account", lambda: self.kubectl(*find))


def _issue(at: Layout) -> None:
    authority = Authority(at.keys)
    authority.issue("apiserver", hosts=configuration.API_SERVER_NAMES)
    authority.issue("front-proxy")
    authority.key_pair("tokens")
    for name, (user, groups) in configuration.USERS.items():
        authority.issue(name, user, groups=groups, hosts=(HOST, NODE) if name == "kubelet" else ())
        authority.kubeconfig(name, configuration.SERVER)
