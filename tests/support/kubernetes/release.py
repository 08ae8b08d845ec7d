"""A release of eilpost's chart on the test cluster.

Each has its own namespace and its own topics on the shared broker. Its values are a set of `helm/ci` with the image of
this tree, small resource requests, frequent startup probes and short termination delays.
"""

from __future__ import annotations

import http.client
import itertools
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.docs.shell_blocks import blocks
from tests.support.golang import GoProgram
from tests.support.kubernetes.cluster import CommandError, Kubernetes
from tests.support.kubernetes.configuration import HOST
from tests.support.kubernetes.network import inside
from tests.support.kubernetes.programs import HELM

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm"
(_README_COMMANDS,) = (block for block in blocks((ROOT / "README.md").read_text(), "") if "helm install" in block)
HELM_INSTALL, HELM_TEST = _README_COMMANDS.replace("\\\n", "").splitlines()
_README_IMAGE = "--set image.repository=registry.example.test/eilpost"
_README_NAMESPACE = "--namespace eilpost"
ROLES = ("ingress", "router", "delivery", "mailstore")
DRAIN_SECONDS = 5
IN_FLIGHT = 20  # delivery.max_in_flight_deliveries: concurrent deliveries of a process; far fewer than the tests send
_SINK_PORTS = itertools.count(2600)
_HTTP = 8025
# After address translation, clients from outside the cluster have an address of the pods' network.
CLIENTS = ["10.123.0.0/24", "10.244.0.0/24"]


def values(namespace: str, image: str, sink_port: int) -> dict[str, Any]:
    """On top of any value set."""
    repository, _, tag = image.rpartition(":")
    small = {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}}}
    return {
        "image": {"repository": repository, "tag": tag},
        "log": {
            "bootstrap": "kafka.kafka.svc.cluster.local.:9092",
            "prefix": f"{namespace}.",
            "replication": 1,
            "durability": "dev",
        },
        "settings": {
            "ingress": {"relay_networks": CLIENTS, "sender_domain_must_resolve": False},
            "delivery": {"max_in_flight_deliveries": IN_FLIGHT},
        },
        "defaults": {"drainSeconds": DRAIN_SECONDS, "probes": {"startup": {"periodSeconds": 1}}, **small},
        "ingress": small,
        "router": small,
        "delivery": {"relay": f"smtp://{HOST}:{sink_port}", **small},
        "mailstore": small,
    }


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Maps are merged; other values of `other` replace those of `one`."""
    result = dict(one)
    for key, value in other.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


# The kernel kills the process with the highest score, which is the first one.
_MANY_PROCESSES = """
import os, time
open("/proc/1/oom_score_adj", "w").write("1000")
while True:
    if not os.fork():
        held = b"x" * (10 * 2**20)
        time.sleep(60)
        os._exit(0)
    time.sleep(0.02)
"""


class Release:
    """The release `mail` in `namespace`. Names of its objects begin with `mail-eilpost-`."""

    name = "mail"

    def __init__(self, cluster: Kubernetes, namespace: str, image: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.image = image
        self.sink_port = next(_SINK_PORTS)
        self._values = values(namespace, image, self.sink_port)

    def helm(self, command: str, *arguments: str, timeout: float = 150.0, program: GoProgram = HELM) -> str:
        options = ("--namespace", self.namespace)
        return self.cluster.helm(command, self.name, *arguments, *options, timeout=timeout, program=program)

    def run_of_readme(self, command: str) -> str:
        """Run HELM_INSTALL or HELM_TEST with this release's namespace; its values, with the image, replace `--set`."""
        assert _README_NAMESPACE in command
        command = command.replace(_README_NAMESPACE, f"--namespace {self.namespace}")
        command = command.replace(_README_IMAGE, f"--values {self._write_values({})}")
        return self.cluster.run("bash", "-c", command, timeout=150)

    def kubectl(self, *arguments: str, **how: Any) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, **how)

    def install(self, value_set: str, over: Mapping[str, Any] | None = None, *options: str, seconds: int = 110) -> str:
        """`helm install` with `helm/ci/VALUE_SET.yaml`; returns its output."""
        return self._deploy("install", value_set, over or {}, f"--timeout={seconds}s", *options, timeout=seconds + 20)

    def upgrade(
        self,
        value_set: str,
        over: Mapping[str, Any] | None = None,
        *options: str,
        seconds: int = 110,
        program: GoProgram = HELM,
    ) -> str:
        options = (f"--timeout={seconds}s", *options)
        return self._deploy("upgrade", value_set, over or {}, *options, timeout=seconds + 20, program=program)

    def _deploy(self, command: str, value_set: str, over: Mapping[str, Any], *options: str, **how: Any) -> str:
        sets = ("--values", str(CHART / "ci" / f"{value_set}.yaml"), "--values", str(self._write_values(over)))
        return self.helm(command, str(CHART), *sets, *options, **how)

    def _write_values(self, over: Mapping[str, Any]) -> Path:
        file = self.cluster.folder / f"{self.namespace}.values.json"
        file.write_text(json.dumps(merged(self._values, over)))
        return file

    def pods(self, role: str = "") -> list[dict[str, Any]]:
        """Pods of the release, or of one role, without those being deleted."""
        selector = f"app.kubernetes.io/instance={self.name}"
        if role:
            selector += f",app.kubernetes.io/component={role}"
        found = self.cluster.get("pods", "--selector", selector, namespace=self.namespace)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def termination_messages(self, role: str) -> list[str]:
        """Of the containers of the role's pods that ended."""
        found = []
        for pod in self.pods(role):
            for status in pod["status"].get("containerStatuses", []):
                ends = [
                    state["terminated"] for state in (status["state"], status["lastState"]) if "terminated" in state
                ]
                found += [end["message"] for end in ends if end.get("message")]
        return found

    def get(self, pod: Mapping[str, Any], path: str) -> tuple[int, str]:
        """Status and body that the pod's HTTP server returns."""
        with inside(self.cluster.namespaces.pid):
            connection = http.client.HTTPConnection(pod["status"]["podIP"], _HTTP, timeout=10)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            finally:
                connection.close()

    def kill(self, pod: str) -> None:
        """SIGKILL to the first process of the pod's container, from the node."""
        self.cluster.task("kill", "--signal", "SIGKILL", self._container(pod))

    def freeze(self, pod: str) -> None:
        """Stop the processes of the pod's container until `thaw`."""
        self.cluster.task("pause", self._container(pod))

    def thaw(self, pod: str) -> None:
        self.cluster.task("resume", self._container(pod))

    def _container(self, pod: str) -> str:
        status = self.cluster.get("pod", pod, namespace=self.namespace)["status"]["containerStatuses"][0]
        identity: str = status["containerID"]
        return identity.removeprefix("containerd://")

    def add_address(self, pod: str, address: str) -> None:
        """Add an address to the pod's interface, as a second network would, and a route from the node to it."""
        cluster = self.cluster
        tasks = cluster.task("ls")
        pid = next(line.split()[1] for line in tasks.splitlines() if line.startswith(self._container(pod)))
        subprocess.run(
            cluster.namespaces.enter(
                "nsenter", f"--net=/proc/{pid}/ns/net", "--", "ip", "address", "add", f"{address}/32", "dev", "eth0"
            ),
            check=True,
            timeout=10,
        )
        cluster.run("ip", "route", "replace", f"{address}/32", "dev", "cni0")

    def exhaust_memory(self, pod: str) -> None:
        """Allocate memory in the container until the kernel kills its first process."""
        self.kubectl("exec", pod, "--", "python", "-c", _MANY_PROCESSES, status=None)

    def until(self, role: str, what: str, attempt: Callable[[], object], timeout: float = 60.0) -> Any:
        """As `Kubernetes.until`; a failure shows the pods of the role with their last log lines."""
        try:
            return self.cluster.until(what, attempt, timeout)
        except CommandError as error:
            selector = f"app.kubernetes.io/component={role}"
            pods = self.kubectl("get", "pods", "--selector", selector, "--output", "wide")
            lines = self.kubectl("logs", "--selector", selector, "--prefix", "--tail", "12", status=None)
            raise AssertionError(f"{error}\n{pods}{lines}") from error

    def address(self, role: str) -> tuple[str, int]:
        """Address of a role's Service."""
        service = self.cluster.get("service", f"{self.name}-eilpost-{role}", namespace=self.namespace)
        return service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]


def name_of(pod: Mapping[str, Any]) -> str:
    name: str = pod["metadata"]["name"]
    return name


def is_ready(pod: Mapping[str, Any]) -> bool:
    return any(found["type"] == "Ready" and found["status"] == "True" for found in pod["status"].get("conditions", []))
