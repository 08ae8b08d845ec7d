"""The chart's network policies, enforced by kube-router: named peers and ports are open, all others are closed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.containers import images
from tests.support.kubernetes import configuration
from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.namespaces import HOST
from tests.support.kubernetes.programs import KUBE_ROUTER
from tests.support.kubernetes.release import ROLES, Release, name_of

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.helm,
    pytest.mark.docker,
    pytest.mark.kube_router,
    pytest.mark.timeout(240),
]

LISTED_CLIENT = {"podSelector": {"matchLabels": {"example.test/may": "send"}}}
HTTP, KAFKA, DNS = 8025, 9092, 53
# A server that is neither Kafka, DNS nor the store: SMTP, PostgreSQL and HTTPS of another namespace.
SMTP, OTHER_PORTS = 25, (443, 5432)
# Connects to each HOST:PORT at the same time; the first bytes of each server, or the name of the error.
PROBE = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def probe(target):
    host, port = target.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            if int(port) == 8025:
                connection.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
            connection.settimeout(1)
            try:
                return connection.recv(20).decode()
            except TimeoutError:
                return "open"
    except OSError as error:
        return type(error).__name__
with ThreadPoolExecutor(20) as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(probe, sys.argv[1:])))))
"""
LISTEN = f"""
import socket, time
held = [socket.create_server(("0.0.0.0", port)) for port in {(SMTP, *OTHER_PORTS)}]
time.sleep(600)
"""


def _pod(namespace: str, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A pod that listens on ports of its own, and that runs the probes."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "main",
        "image": images.image().tag,
        "command": ["python", "-c", LISTEN],
        "securityContext": security,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "containers": [container],
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
            },
            "terminationGracePeriodSeconds": 0,
        },
    }


@pytest.fixture(scope="module")
def enforcing(kubernetes: Kubernetes) -> Kubernetes:
    """kube-router as the enforcer of policies only; it manages no routes and no Services."""
    kubernetes.spawn(
        "kube-router",
        str(KUBE_ROUTER.path),
        *("--run-router=false", "--run-service-proxy=false", "--run-firewall=true"),
        f"--kubeconfig={kubernetes.at.kubeconfig('admin')}",
        f"--hostname-override={configuration.NODE}",
        f"--service-cluster-ip-range={configuration.SERVICES}",
        KUBE_ROUTER_CNI_CONF_FILE=f"{kubernetes.at.conf}/cni/10-pods.conflist",
    )
    return kubernetes


@pytest.fixture(scope="module")
def guarded(enforcing: Kubernetes) -> Iterator[Release]:
    """A release with policies, client pods `listed` and `unlisted`, and one pod each in two other namespaces."""
    with (
        enforcing.namespace("guarded") as namespace,
        enforcing.namespace("monitoring") as monitoring,
        enforcing.namespace("elsewhere") as elsewhere,
    ):
        mail = Release(enforcing, namespace, images.image().tag)
        enforcing.apply(
            [
                _pod(namespace, "listed", {"example.test/may": "send"}),
                _pod(namespace, "unlisted", {}),
                _pod(monitoring, "prometheus", {}),
                _pod(elsewhere, "server", {}),
            ]
        )
        over = {
            "networkPolicy": {"smtpFrom": [LISTED_CLIENT], "pop3From": [LISTED_CLIENT]},
            "defaults": {"replicas": 1},
        }
        mail.install("netpol", over, "--wait")
        for name, where in (("listed", namespace), ("prometheus", monitoring), ("server", elsewhere)):
            enforcing.kubectl("--namespace", where, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=30s")
        service = "{}:{}".format(*mail.address("ingress"))
        enforcing.until("policies are enforced", lambda: _refused(_probe(mail, "unlisted", [service])[service]))
        yield mail


def _probe(mail: Release, pod: str, targets: list[str], namespace: str = "") -> dict[str, str]:
    """What each target answers to a pod."""
    where = ("--namespace", namespace or mail.namespace)
    answers: dict[str, str] = json.loads(
        mail.cluster.kubectl(*where, "exec", pod, "--", "python", "-c", PROBE, *targets)
    )
    return answers


def _refused(answer: str) -> bool:
    return answer in ("TimeoutError", "ConnectionRefusedError")


def _address(mail: Release, pod: str, namespace: str) -> str:
    address: str = mail.cluster.get("pod", pod, namespace=namespace)["status"]["podIP"]
    return address


def test_smtp_and_pop3_are_open_to_named_clients_only(guarded: Release) -> None:
    services = {"{}:{}".format(*guarded.address(role)): role for role in ("ingress", "mailstore")}
    greetings = {"ingress": "220", "mailstore": "+OK"}
    listed = _probe(guarded, "listed", list(services))
    assert all(listed[service].startswith(greetings[role]) for service, role in services.items()), listed
    unlisted = _probe(guarded, "unlisted", list(services))
    assert all(map(_refused, unlisted.values())), unlisted


def test_metrics_are_open_to_the_namespace_of_prometheus_only(guarded: Release) -> None:
    targets = [f"{pod['status']['podIP']}:{HTTP}" for role in ROLES for pod in guarded.pods(role)]
    assert len(targets) == len(ROLES)
    scraped = _probe(guarded, "prometheus", targets, "monitoring")
    assert all("200 OK" in answer for answer in scraped.values()), scraped
    for pod, namespace in (("server", "elsewhere"), ("unlisted", ""), ("listed", "")):
        answers = _probe(guarded, pod, targets, namespace)
        assert all(map(_refused, answers.values())), (pod, answers)


@pytest.mark.parametrize("role", ROLES)
def test_pods_connect_to_what_their_role_needs_only(guarded: Release, role: str) -> None:
    server = _address(guarded, "server", "elsewhere")
    smtp, others = f"{server}:{SMTP}", [f"{server}:{port}" for port in OTHER_PORTS]
    kafka, dns = f"{HOST}:{KAFKA}", f"{HOST}:{DNS}"
    without_policy = _probe(guarded, "prometheus", [smtp, *others], "monitoring")
    assert set(without_policy.values()) == {"open"}
    answers = _probe(guarded, name_of(guarded.pods(role)[0]), [smtp, *others, kafka, dns])
    allowed = {"mailstore": {dns}, "delivery": {dns, kafka, smtp}}.get(role, {dns, kafka})
    assert {target for target, answer in answers.items() if answer == "open"} == allowed, answers
    assert all(_refused(answer) for target, answer in answers.items() if target not in allowed), answers


def test_helm_test_passes_under_the_policies(guarded: Release) -> None:
    printed = guarded.helm("test", "--timeout=60s", "--logs")
    print(printed)
    assert "Phase:          Succeeded" in printed
