"""Debian's Prometheus outside the test cluster, with the labels that the chart's PodMonitor sets.

Debian's build has no pod discovery: `scrape` sets the targets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.configuration import HOST

URL = f"http://{HOST}:9090"
_HTTP = 8025


def start(cluster: Kubernetes) -> None:
    folder = cluster.folder / "prometheus"
    folder.mkdir()
    job = {
        "job_name": "eilpost",
        "honor_labels": True,
        "file_sd_configs": [{"files": [str(_targets(cluster))], "refresh_interval": "1s"}],
    }
    every = {"scrape_interval": "2s", "scrape_timeout": "2s"}
    (folder / "prometheus.yml").write_text(json.dumps({"global": every, "scrape_configs": [job]}))
    cluster.spawn(
        "prometheus",
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={HOST}:9090",
    )


def scrape(cluster: Kubernetes, pods: Iterable[Mapping[str, Any]]) -> None:
    """Scrape these pods every two seconds from now on."""
    targets = [
        {
            "targets": [f"{pod['status']['podIP']}:{_HTTP}"],
            "labels": {
                "namespace": pod["metadata"]["namespace"],
                "pod": pod["metadata"]["name"],
                "role": pod["metadata"]["labels"]["app.kubernetes.io/component"],
                "tenant": pod["metadata"]["labels"]["eilpost/tenant"],
            },
        }
        for pod in pods
    ]
    part = _targets(cluster).with_suffix(".part")
    part.write_text(json.dumps(targets))
    part.rename(_targets(cluster))


def _targets(cluster: Kubernetes) -> Path:
    return cluster.folder / "prometheus" / "targets.json"
