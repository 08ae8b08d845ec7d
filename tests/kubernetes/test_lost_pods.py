"""Pods lost under load in every way that Kubernetes loses them: accepted mail is delivered.

Only deliveries in flight in the lost process may be duplicated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.kubernetes.cluster import CommandError, Kubernetes
from tests.support.kubernetes.configuration import NODE
from tests.support.kubernetes.release import IN_FLIGHT, ROLES, Release, is_ready, name_of
from tests.support.kubernetes.traffic import assert_nothing_lost, sending

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm, pytest.mark.docker, pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def _ready_again(mail: Release) -> Iterator[None]:
    yield
    for role in ROLES:
        mail.kubectl("rollout", "status", f"deployment/mail-eilpost-{role}", "--timeout=90s", timeout=100)


def _restarts(mail: Release, role: str) -> dict[str, int]:
    return {name_of(pod): pod["status"]["containerStatuses"][0]["restartCount"] for pod in mail.pods(role)}


def _until_restarted(mail: Release, role: str, victim: str, before: int) -> None:
    """Wait until the container has restarted and its process is ready."""

    def again() -> bool:
        (pod,) = (pod for pod in mail.pods(role) if name_of(pod) == victim)
        return pod["status"]["containerStatuses"][0]["restartCount"] == before + 1 and is_ready(pod)

    mail.cluster.until(f"{victim} was restarted and is ready", again)


def _last_state(mail: Release, pod: str) -> dict[str, Any]:
    status = mail.cluster.get("pod", pod, namespace=mail.namespace)["status"]["containerStatuses"][0]
    ended: dict[str, Any] = status["lastState"].get("terminated", {})
    return ended


def _evict(mail: Release, pod: str) -> None:
    """Evict a pod, like `kubectl drain`. Raises CommandError if a disruption budget forbids it."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": mail.namespace},
    }
    path = f"/api/v1/namespaces/{mail.namespace}/pods/{pod}/eviction"
    mail.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


@pytest.mark.parametrize("role", ["ingress", "router", "delivery"])
def test_killed_process_loses_nothing(mail: Release, role: str) -> None:
    """SIGKILL to the process of one pod, from the node."""
    victim = name_of(mail.pods(role)[0])
    before = _restarts(mail, role)[victim]
    with sending(mail) as traffic:
        mail.kill(victim)
        _until_restarted(mail, role, victim, before)
        result = traffic.result()
    assert _last_state(mail, victim)["exitCode"] == 128 + 9
    assert result["accepted"] > 2 * IN_FLIGHT  # otherwise the bound proves nothing
    assert_nothing_lost(result, most_duplicates=IN_FLIGHT if role == "delivery" else 0)


def test_disruption_budget_delays_a_second_eviction(mail: Release) -> None:
    for role in ("ingress", "router", "delivery"):
        mail.kubectl("rollout", "status", f"deployment/mail-eilpost-{role}", "--timeout=60s", timeout=70)
    with sending(mail) as traffic:
        for role in ("ingress", "router", "delivery"):
            first, second = (name_of(pod) for pod in mail.pods(role))
            _evict(mail, first)
            with pytest.raises(CommandError, match="disruption budget"):
                _evict(mail, second)
        for role in ("ingress", "router", "delivery"):
            mail.kubectl("rollout", "status", f"deployment/mail-eilpost-{role}", "--timeout=60s", timeout=70)
        result = traffic.result()
    assert_nothing_lost(result)


def test_pod_out_of_memory_loses_nothing(mail: Release) -> None:
    """A delivery's container reaches its memory limit, and the kernel kills the process."""
    victim = name_of(mail.pods("delivery")[0])
    before = _restarts(mail, "delivery")[victim]
    with sending(mail) as traffic:
        mail.exhaust_memory(victim)
        _until_restarted(mail, "delivery", victim, before)
        result = traffic.result()
    assert _last_state(mail, victim)["reason"] == "OOMKilled"
    assert result["accepted"] > 2 * IN_FLIGHT  # otherwise the bound proves nothing
    assert_nothing_lost(result, most_duplicates=IN_FLIGHT)


def test_drained_node_loses_nothing(mail: Release, kubernetes: Kubernetes) -> None:
    """The only node is drained: budgets release the next pod of a role when its successor runs on another node.

    There is none, so the drain cannot finish before the node is schedulable again.
    """
    everything = {name_of(pod) for role in ROLES for pod in mail.pods(role)}
    selector = "app.kubernetes.io/instance=mail,app.kubernetes.io/component in (ingress,router,delivery)"
    with sending(mail) as traffic:
        with pytest.raises(CommandError, match="disruption budget"):
            kubernetes.kubectl("drain", NODE, "--pod-selector", selector, "--delete-emptydir-data", "--timeout=10s")
        assert any(not is_ready(pod) for pod in mail.pods())
        kubernetes.kubectl("uncordon", NODE)
        for role in ROLES:
            mail.kubectl("rollout", "status", f"deployment/mail-eilpost-{role}", "--timeout=60s", timeout=70)
        result = traffic.result()
    assert {name_of(pod) for role in ROLES for pod in mail.pods(role)} != everything
    assert_nothing_lost(result)
