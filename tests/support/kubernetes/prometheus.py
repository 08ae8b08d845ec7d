"""Debian's Prometheus next to the test cluster, configured from the chart's PodMonitor as by prometheus-operator.

Debian's build has no pod discovery: `scrape` gives it pods with the labels of discovery, `__meta_kubernetes_*`. The
labels that prometheus-operator adds to every PodMonitor are left out, so those of the chart must suffice.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from tests.support.kubernetes.cluster import CommandError, Kubernetes
from tests.support.kubernetes.configuration import HOST
from tests.support.kubernetes.network import inside

Object = Mapping[str, Any]
_PORT = 9090
URL = f"http://{HOST}:{_PORT}"
_INTERVAL = {"scrape_interval": "2s", "scrape_timeout": "2s"}


class Prometheus:
    """One Prometheus on one cluster. `start` after `stop` continues with the same data and targets."""

    def __init__(self, cluster: Kubernetes) -> None:
        self._cluster = cluster
        self._folder = cluster.folder / "prometheus"
        self._folder.mkdir()
        self._configure([])

    def start(self) -> None:
        self._cluster.spawn(
            "prometheus",
            "prometheus",
            f"--config.file={self._folder}/prometheus.yml",
            f"--storage.tsdb.path={self._folder}/data",
            f"--web.listen-address={HOST}:{_PORT}",
            "--web.enable-lifecycle",
        )
        self._cluster.until("Prometheus is ready", lambda: self._request("GET", "/-/ready"))

    def stop(self) -> None:
        self._cluster.end("prometheus")

    def scrape(self, monitor: Object, pods: Iterable[Object]) -> None:
        """Scrape the pods that this PodMonitor selects from `pods`, every two seconds from now on."""
        (self._folder / "targets.json").write_text(json.dumps([target for pod in pods for target in _discovered(pod)]))
        self._configure([{**job, "file_sd_configs": [{"files": ["targets.json"]}]} for job in _jobs(monitor)])
        self._request("POST", "/-/reload")

    def query(self, expression: str) -> list[dict[str, str]]:
        """The labels of every sample that an instant query returns."""
        answer = json.loads(self._request("GET", f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
        return [sample["metric"] for sample in answer["data"]["result"]]

    def _configure(self, jobs: list[Object]) -> None:
        (self._folder / "prometheus.yml").write_text(json.dumps({"global": _INTERVAL, "scrape_configs": jobs}))

    def _request(self, method: str, path: str) -> str:
        try:
            with inside(self._cluster.namespaces.pid):
                connection = http.client.HTTPConnection(HOST, _PORT, timeout=10)
                with closing(connection):
                    connection.request(method, path)
                    answer = connection.getresponse()
                    status, body = answer.status, answer.read().decode()
        except OSError as error:
            raise CommandError(f"Prometheus does not answer: {error}") from error
        if status != 200:
            raise CommandError(f"{path}: {status} {body}")
        return body


def _pod_label(name: str) -> str:
    return "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", name)


def _discovered(pod: Object) -> Iterator[Object]:
    """The targets of a pod, one for each port, with the labels that Prometheus' own discovery gives them."""
    metadata, address = pod["metadata"], pod["status"].get("podIP")
    labels = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        "__meta_kubernetes_pod_name": metadata["name"],
        **{_pod_label(name): value for name, value in metadata["labels"].items()},
    }
    for port in pod["spec"]["containers"][0].get("ports", []) if address else ():
        named = {**labels, "__meta_kubernetes_pod_container_port_name": port["name"]}
        yield {"targets": [f"{address}:{port['containerPort']}"], "labels": named}


def _jobs(monitor: Object) -> Iterator[dict[str, Any]]:
    """The scrape configuration of a PodMonitor."""
    selected = [
        {"source_labels": [_pod_label(name)], "regex": re.escape(value), "action": "keep"}
        for name, value in monitor["spec"]["selector"]["matchLabels"].items()
    ]
    for number, endpoint in enumerate(monitor["spec"]["podMetricsEndpoints"]):
        port = {
            "source_labels": ["__meta_kubernetes_pod_container_port_name"],
            "regex": endpoint["port"],
            "action": "keep",
        }
        yield {
            "job_name": f"{monitor['metadata']['name']}/{number}",
            "honor_labels": endpoint["honorLabels"],
            "metrics_path": endpoint["path"],
            "relabel_configs": [*selected, port, *map(_snake_case, endpoint["relabelings"])],
        }


def _snake_case(relabeling: Object) -> Object:
    """A relabeling of a PodMonitor as Prometheus' own configuration spells it."""
    return {re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", key): value for key, value in relabeling.items()}
