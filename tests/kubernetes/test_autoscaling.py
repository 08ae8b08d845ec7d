"""Autoscaling: ingress by its CPU use, routers and deliveries by waiting mail with KEDA."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.docs.shell_blocks import blocks
from tests.support.kubernetes import keda
from tests.support.kubernetes.cluster import CommandError, Kubernetes
from tests.support.kubernetes.network import inside
from tests.support.kubernetes.prometheus import URL, Prometheus
from tests.support.kubernetes.release import IN_FLIGHT, ROOT, Release, is_ready, name_of
from tests.support.kubernetes.traffic import assert_nothing_lost, sending

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm, pytest.mark.docker, pytest.mark.timeout(300)]

QUICKLY = {
    "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 200, "periodSeconds": 10}]},
    "scaleDown": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 5}]},
}
PAGE = ROOT / "docs" / "kubernetes.md"
FAILURES = 3  # fallback.failureThreshold of the chart's ScaledObjects


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


def _open_sessions(mail: Release, stack: ExitStack) -> dict[str, smtplib.SMTP]:
    """An idle SMTP session with each ingress pod, by pod; they are closed with the stack."""
    sessions = {}
    for pod in mail.pods("ingress"):
        with inside(mail.cluster.namespaces.pid):
            client = smtplib.SMTP(pod["status"]["podIP"], 2525, timeout=30)
        stack.callback(client.close)
        sessions[name_of(pod)] = client
    return sessions


def test_ingress_scales_with_its_cpu_use(mail: Release) -> None:
    """Autoscaling is switched on under load, adds pods, and removes them, which ends their idle sessions by 421."""
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
    with sending(mail, rate=120) as traffic:
        mail.upgrade("hpa", over, "--wait")
        _until_scaled(mail, "ingress", 3)
        assert_nothing_lost(traffic.result())
    with ExitStack() as stack, sending(mail, rate=3) as traffic:
        sessions = _open_sessions(mail, stack)
        assert len(sessions) == 3
        _until_scaled(mail, "ingress", 1)
        (kept,) = (name_of(pod) for pod in mail.pods("ingress"))
        replies = {pod: (client.noop() if pod == kept else client.getreply())[0] for pod, client in sessions.items()}
        assert replies == {**dict.fromkeys(sessions, 421), kept: 250}
        result = traffic.result()
    assert result["accepted"] > 20  # otherwise hardly a message came while pods were removed
    assert_nothing_lost(result)


@pytest.fixture(scope="module")
def scalers(operators: Kubernetes, prometheus: Prometheus) -> Prometheus:
    """KEDA runs, and so does its Prometheus."""
    keda.start(operators)
    return prometheus


@pytest.mark.keda
@pytest.mark.prometheus
def test_keda_does_not_scale_a_paused_role(mail: Release, scalers: Prometheus) -> None:
    """Stops and starts a role that KEDA scales with the commands of docs/kubernetes.md."""
    text = [line for block in blocks(PAGE.read_text(), "text") for line in block.splitlines()]
    pause, resume = (line for line in text if "autoscaling.keda.sh/paused-replicas" in line)
    mail.upgrade(
        "keda", {"router": {"keda": {"pollingInterval": 2}}, "delivery": {"keda": {"enabled": False}}}, "--wait"
    )
    mail.cluster.until("KEDA made its autoscaler", lambda: mail.kubectl("get", "hpa", "--output=name"))
    for command, replicas in ((pause, 0), (resume, 2)):
        mail.cluster.run("bash", "-c", command.replace("--namespace eilpost", f"--namespace {mail.namespace}"))
        _until_wanted(mail, "router", replicas)
    _until_scaled(mail, "router", 2)


def _sum_of(metrics: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}\{{.*\}} (\S+)$", metrics, re.MULTILINE))


def _until_taken_over(mail: Release, role: str, frozen: set[str]) -> None:
    """Wait until pods that are not frozen own all shards."""

    def is_taken_over() -> bool:
        new = [pod for pod in mail.pods(role) if name_of(pod) not in frozen and is_ready(pod)]
        metrics = [mail.get(pod, "/metrics")[1] for pod in new]
        owned = sum(_sum_of(each, "eilpost_shards_owned") for each in metrics)
        return owned > 0 and owned == max(_sum_of(each, "eilpost_shards") for each in metrics)

    mail.until(role, "new pods own all shards", is_taken_over)


def _failures(mail: Release, role: str) -> int:
    """How often in succession KEDA did not get the metric."""
    scaled = mail.cluster.get("scaledobject", f"mail-eilpost-{role}", namespace=mail.namespace)
    return sum(each.get("numberOfFailures", 0) for each in scaled["status"].get("health", {}).values())


# KEDA's metric for each role, and the number of possible duplicates: the deliveries in flight of the frozen processes.
TRIGGERS: dict[str, tuple[dict[str, Any], int]] = {
    "router": ({"threshold": 20}, 0),
    "delivery": ({"threshold": 20, "prometheusAddress": URL}, 2 * IN_FLIGHT),
}


@pytest.mark.keda
@pytest.mark.prometheus
@pytest.mark.parametrize("role", list(TRIGGERS))
def test_pods_are_added_while_mail_waits_and_removed_afterwards(mail: Release, scalers: Prometheus, role: str) -> None:
    """Both pods of a role are frozen, so that mail waits: KEDA adds pods, which take over their shards.

    When the waiting mail is processed, KEDA removes two pods: routers under the same load, delivery processes when
    Prometheus, which stops meanwhile, answers again.
    """
    trigger, most_duplicates = TRIGGERS[role]
    scaled = {"enabled": True, "minReplicas": 2, "maxReplicas": 4, "pollingInterval": 2, "behavior": QUICKLY}
    other = "delivery" if role == "router" else "router"
    over = {role: {"keda": {**scaled, **trigger}}, other: {"keda": {"enabled": False}}}
    mail.upgrade("keda", {**over, "monitoring": {"podMonitor": {"enabled": True}}}, "--wait")
    mail.cluster.until("KEDA made its autoscaler", lambda: mail.kubectl("get", "hpa", "--output=name"))
    _until_scaled(mail, role, 2)
    scalers.scrape(mail.cluster.get("podmonitor", "mail-eilpost", namespace=mail.namespace), mail.pods())
    frozen = {name_of(pod) for pod in mail.pods(role)}
    with sending(mail, "--settle", "60s", rate=30) as traffic:
        for pod in frozen:
            mail.freeze(pod)
        _until_wanted(mail, role, 4)
        _until_taken_over(mail, role, frozen)
        if role == "delivery":
            scalers.stop()
        for pod in frozen:
            mail.thaw(pod)
        if role == "router":
            _until_wanted(mail, role, 2)
        assert_nothing_lost(traffic.result(timeout=150), most_duplicates=most_duplicates)
    if role == "delivery":
        mail.cluster.until("KEDA uses the fallback", lambda: _failures(mail, role) > FAILURES + 1)
        assert _wanted(mail, role) == 4
        scalers.start()
        _until_wanted(mail, role, 2)
