"""The chart's network policies, enforced by kube-router: only the named clients can connect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.kubernetes import configuration
from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.programs import KUBE_ROUTER
from tests.support.kubernetes.release import Release

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.helm,
    pytest.mark.docker,
    pytest.mark.kube_router,
    pytest.mark.timeout(240),
]

FRIEND = {"podSelector": {"matchLabels": {"example.test/may": "send"}}}
# Prints a server's greeting, or the error.
GREETING = """
import socket, sys
try:
    print(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).recv(100))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture
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


def _client(name: str, image: str, labels: dict[str, str]) -> dict[str, Any]:
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "main", "image": image, "command": ["sleep", "300"], "securityContext": security}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }


def test_only_named_clients_can_connect(enforcing: Kubernetes, release: Callable[[], Release]) -> None:
    mail = release()
    clients = [
        _client("friend", mail.image, {"example.test/may": "send"}),
        _client("stranger", mail.image, {}),
    ]
    for client in clients:
        client["metadata"]["namespace"] = mail.namespace
    enforcing.apply(clients)
    over = {
        "networkPolicy": {"smtpFrom": [FRIEND], "pop3From": [FRIEND]},
        "defaults": {"replicas": 1},
    }
    mail.install("netpol", over, "--wait")
    mail.kubectl("wait", "--for=condition=Ready", "pod/friend", "pod/stranger", "--timeout=30s")
    for role, greeting in (("ingress", "220"), ("mailstore", "+OK")):
        enforcing.until(f"{role} refuses a stranger", lambda: greeting not in _ask(mail, "stranger", role))  # noqa: B023
        assert greeting in _ask(mail, "friend", role)
        assert greeting not in _ask(mail, "stranger", role)


def _ask(mail: Release, client: str, role: str) -> str:
    """The greeting of a role's Service to a client, or the client's error."""
    host, port = mail.address(role)
    return mail.kubectl("exec", client, "--", "python", "-c", GREETING, host, str(port))
