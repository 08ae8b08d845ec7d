"""Debian's Prometheus beside the test cluster. It finds the pods by the API and labels them as the chart does."""

from __future__ import annotations

import json

from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.configuration import HOST

URL = f"http://{HOST}:9090"
_LABELS = {
    "namespace": "__meta_kubernetes_namespace",
    "pod": "__meta_kubernetes_pod_name",
    "role": "__meta_kubernetes_pod_label_app_kubernetes_io_component",
    "tenant": "__meta_kubernetes_pod_label_eilpost_tenant",
}


def start(cluster: Kubernetes) -> None:
    """Every pod that is labelled `eilpost/scrape` is scraped every two seconds, as soon as it is there."""
    folder = cluster.folder / "prometheus"
    folder.mkdir()
    only = [
        {"source_labels": ["__meta_kubernetes_pod_label_eilpost_scrape"], "regex": "true", "action": "keep"},
        {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": "http", "action": "keep"},
    ]
    job = {
        "job_name": "eilpost",
        "honor_labels": True,
        "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": str(cluster.at.kubeconfig("admin"))}],
        "relabel_configs": [
            *only,
            *({"source_labels": [source], "target_label": label} for label, source in _LABELS.items()),
        ],
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
