"""Kubernetes objects for tests, as plain values. Pure."""

from __future__ import annotations

from typing import Any

from tests.support.kubernetes.configuration import HOST, NODE, PAUSE_IMAGE

Object = dict[str, Any]


def namespace(name: str) -> Object:
    """A namespace for pods of the restricted Pod Security Standard only."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def pause_pod(name: str) -> Object:
    """An idle pod."""
    container = {"name": "main", "image": PAUSE_IMAGE}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }


def outside_service(name: str, namespace: str, port: int, *, target: int | None = None) -> list[Object]:
    """A Service for a process outside the cluster, at `HOST`."""
    ports = [{"name": "main", "port": port, "targetPort": target or port}]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-1",
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "main", "port": target or port}],
            "endpoints": [{"addresses": [HOST], "conditions": {"ready": True}}],
        },
    ]


def aggregated(name: str, group: str, version: str, service: str, namespace: str) -> Object:
    """Registration of an API that is served by another process than the API server."""
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": name},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"name": service, "namespace": namespace},
        },
    }


METRICS = [
    *outside_service("metrics-server", "kube-system", 443, target=4443),
    aggregated("v1beta1.metrics.k8s.io", "metrics.k8s.io", "v1beta1", "metrics-server", "kube-system"),
]


def local_volumes(folder: str, count: int) -> list[Object]:
    """`count` empty folders as PersistentVolumes of the default storage class.

    Any number of pods of the node can mount a local volume, so it can stand for a volume shared by all nodes.
    """
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
    }
    return [storage_class, *(_local_volume(f"local-{number}", f"{folder}/{number}") for number in range(count))]


def _local_volume(name: str, path: str) -> Object:
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "100Gi"},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "local",
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
        },
    }
