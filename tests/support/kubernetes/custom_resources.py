"""CustomResourceDefinitions of the operators whose resources the chart renders, from their Go modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.support.golang import module_folder
from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.programs import KEDA_VERSION

_PROMETHEUS = ("github.com/prometheus-operator/prometheus-operator", "v0.85.0")
_MONITORING = "example/prometheus-operator-crd/monitoring.coreos.com_{}.yaml"
_FILES = (
    ("github.com/kedacore/keda/v2", KEDA_VERSION, "config/crd/bases/*.yaml"),
    *((*_PROMETHEUS, _MONITORING.format(kind)) for kind in ("podmonitors", "servicemonitors", "prometheusrules")),
    ("github.com/cert-manager/cert-manager", "v1.19.1", "deploy/crds/cert-manager.io_certificates.yaml"),
)


def files() -> Iterator[Path]:
    for module, version, pattern in _FILES:
        yield from sorted(module_folder(module, version).glob(pattern))


def define(cluster: Kubernetes) -> None:
    """Register them with the API server. Server-side apply, because they exceed the annotation of `kubectl apply`."""
    names = [argument for file in files() for argument in ("--filename", str(file))]
    cluster.kubectl("apply", "--server-side", *names, timeout=120)
    wait = ("wait", "--for=condition=Established", "crd", "--all", "--timeout=20s")
    cluster.until("they are established", lambda: cluster.kubectl(*wait))  # fails while one has no condition yet
