"""KEDA's operator and metrics adapter as processes outside the test cluster, in its network."""

from __future__ import annotations

from tests.support.kubernetes import configuration, manifests
from tests.support.kubernetes.certificates import Authority
from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.programs import KEDA_ADAPTER, KEDA_OPERATOR

_NAMESPACE = "keda"
_METRICS_PORT, _ADAPTER_PORT = 9666, 6444


def start(cluster: Kubernetes) -> None:
    """Return when the operator acts on ScaledObjects and the adapter serves external metrics. Needs the definitions."""
    certificates = cluster.folder / "keda"
    authority = Authority(certificates)
    authority.issue("tls", hosts=("localhost", "127.0.0.1"))
    kubeconfig = str(cluster.at.kubeconfig("admin"))
    cluster.apply(
        [
            manifests.namespace(_NAMESPACE),
            *manifests.outside_service("keda", _NAMESPACE, 443, target=_ADAPTER_PORT),
            manifests.aggregated(
                "v1beta1.external.metrics.k8s.io", "external.metrics.k8s.io", "v1beta1", "keda", _NAMESPACE
            ),
        ]
    )
    cluster.spawn(
        "keda-operator",
        str(KEDA_OPERATOR.path),
        f"--kubeconfig={kubeconfig}",
        f"--cert-dir={certificates}",
        "--metrics-bind-address=127.0.0.1:8086",
        "--health-probe-bind-address=127.0.0.1:8087",
        WATCH_NAMESPACE="",  # all
        KEDA_CLUSTER_OBJECT_NAMESPACE=_NAMESPACE,
    )
    cluster.spawn(
        "keda-adapter",
        str(KEDA_ADAPTER.path),
        f"--secure-port={_ADAPTER_PORT}",
        f"--lister-kubeconfig={kubeconfig}",
        *configuration.delegated(cluster.at, "admin")[1:],
        f"--kubeconfig={kubeconfig}",
        f"--client-ca-file={cluster.at.keys}/ca.crt",
        f"--cert-dir={certificates}",
        f"--metrics-service-address=127.0.0.1:{_METRICS_PORT}",
        "--metrics-service-grpc-authority=localhost",
        "--port=18082",
        WATCH_NAMESPACE="",  # all
        KEDA_CLUSTER_OBJECT_NAMESPACE=_NAMESPACE,
    )
    path = "/apis/external.metrics.k8s.io/v1beta1"
    cluster.until("external metrics can be asked for", lambda: cluster.kubectl("get", "--raw", path), timeout=90)
