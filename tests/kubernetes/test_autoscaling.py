"""Autoscaling: ingress by its CPU use, routers and deliveries by waiting mail with KEDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.kubernetes import keda, prometheus
from tests.support.kubernetes.cluster import CommandError, Kubernetes
from tests.support.kubernetes.release import Release, name_of
from tests.support.kubernetes.traffic import assert_nothing_lost, sending

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm, pytest.mark.docker, pytest.mark.timeout(300)]

QUICKLY = {
    "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 200, "periodSeconds": 10}]},
    "scaleDown": {"stabilizationWindowSeconds": 20, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 5}]},
}
AT_ONCE = {**QUICKLY, "scaleDown": {**QUICKLY["scaleDown"], "stabilizationWindowSeconds": 0}}


@pytest.fixture(autouse=True)
def _as_it_was(mail: Release) -> Iterator[None]:
    yield
    mail.upgrade("minimal", None, "--wait")


def _wanted(mail: Release, role: str) -> int:
    """Desired replicas of the Deployment."""
    found = mail.cluster.get("deployment", f"mail-eilpost-{role}", namespace=mail.namespace)
    replicas: int = found["spec"]["replicas"]
    return replicas


def _until_wanted(mail: Release, role: str, replicas: int) -> None:
    try:
        mail.cluster.until(f"{replicas} of {role}", lambda: _wanted(mail, role) == replicas, timeout=120)
    except CommandError as error:
        raise AssertionError(f"{error}\n{mail.kubectl('describe', 'hpa')}") from error


def _until_scaled(mail: Release, role: str, replicas: int) -> None:
    """Wait until the autoscaler wants this many replicas and they are ready."""
    _until_wanted(mail, role, replicas)
    mail.kubectl("rollout", "status", f"deployment/mail-eilpost-{role}", "--timeout=60s", timeout=70)


def test_ingress_scales_with_its_cpu_use(mail: Release) -> None:
    over: dict[str, Any] = {
        "ingress": {
            "resources": {"requests": {"cpu": "100m"}},
            "autoscaling": {
                "enabled": True,
                "minReplicas": 1,
                "maxReplicas": 3,
                "targetCPUUtilizationPercentage": 30,
                "behavior": QUICKLY,
            },
        }
    }
    mail.upgrade("hpa", over, "--wait")
    with sending(mail, rate=120) as traffic:
        _until_scaled(mail, "ingress", 3)
        assert_nothing_lost(traffic.result())
    with sending(mail, rate=3) as traffic:
        _until_scaled(mail, "ingress", 1)
        assert_nothing_lost(traffic.result())


@pytest.fixture(scope="module")
def scalers(operators: Kubernetes) -> None:
    keda.start(operators)
    prometheus.start(operators)


# KEDA's metric for each role, and the number of possible duplicates: the deliveries in flight of a stopped process.
TRIGGERS: dict[str, tuple[dict[str, Any], int]] = {
    "router": ({"threshold": 20}, 0),
    "delivery": ({"threshold": 20, "prometheusAddress": prometheus.URL}, 500),
}


@pytest.mark.keda
@pytest.mark.prometheus
def test_keda_does_not_scale_a_paused_role(mail: Release, scalers: None) -> None:
    """Stops a role that KEDA scales, as described in docs/kubernetes.md."""
    mail.upgrade(
        "keda", {"router": {"keda": {"pollingInterval": 2}}, "delivery": {"keda": {"enabled": False}}}, "--wait"
    )
    mail.cluster.until("KEDA made its autoscaler", lambda: mail.kubectl("get", "hpa", "--output=name"))
    paused = "autoscaling.keda.sh/paused-replicas"
    mail.kubectl("annotate", "scaledobject", "mail-eilpost-router", f"{paused}=0")
    _until_wanted(mail, "router", 0)
    mail.kubectl("annotate", "scaledobject", "mail-eilpost-router", f"{paused}-")
    _until_scaled(mail, "router", 2)


@pytest.mark.keda
@pytest.mark.prometheus
@pytest.mark.parametrize("role", list(TRIGGERS))
def test_pods_are_added_while_mail_waits_and_removed_afterwards(mail: Release, scalers: None, role: str) -> None:
    """Both pods of a role are stopped, so that mail waits: KEDA adds pods that take over.

    When the waiting mail is routed, KEDA removes two routers, under the same load.
    """
    trigger, most_duplicates = TRIGGERS[role]
    scaled = {"enabled": True, "minReplicas": 2, "maxReplicas": 4, "pollingInterval": 2, "behavior": AT_ONCE}
    other = "delivery" if role == "router" else "router"
    mail.upgrade("keda", {role: {"keda": {**scaled, **trigger}}, other: {"keda": {"enabled": False}}}, "--wait")
    mail.cluster.until("KEDA made its autoscaler", lambda: mail.kubectl("get", "hpa", "--output=name"))
    _until_scaled(mail, role, 2)
    prometheus.scrape(mail.cluster, mail.pods("router"))
    before = [name_of(pod) for pod in mail.pods(role)]
    with sending(mail, "--settle", "60s", rate=30) as traffic:
        for pod in before:
            mail.freeze(pod)
        _until_wanted(mail, role, 4)
        for pod in before:
            mail.thaw(pod)
        if role == "router":
            _until_wanted(mail, role, 2)
        assert_nothing_lost(traffic.result(timeout=150), most_duplicates=most_duplicates)
