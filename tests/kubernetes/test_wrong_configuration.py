"""A release that cannot work shows the reason in one line of `kubectl` output; it recovers if only Kafka was
missing.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.kubernetes import broker, manifests
from tests.support.kubernetes.network import inside
from tests.support.kubernetes.release import ROLES, Release, is_ready, name_of

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm, pytest.mark.docker, pytest.mark.timeout(180)]
ONE_OF_EACH = {"defaults": {"replicas": 1}}


def _ended(mail: Release, role: str) -> str:
    """Termination message of a pod's container."""
    for pod in mail.pods(role):
        for status in pod["status"].get("containerStatuses", []):
            for state in (status["state"], status["lastState"]):
                if "terminated" in state:
                    message: str = state["terminated"].get("message", "")
                    return message
    return ""


def test_wrong_setting_is_the_termination_message(release: Callable[[], Release]) -> None:
    mail = release()
    wrong = [{"name": "EILPOST_INGRESS__MAX_MESSAGE_SIZE", "value": "many"}]  # not checked by the chart's schema
    mail.install("minimal", {"ingress": {"extraEnv": wrong}, **ONE_OF_EACH})
    message = mail.cluster.until("ingress ended", lambda: _ended(mail, "ingress"))
    assert len(message.splitlines()) == 1
    assert "EILPOST_INGRESS__MAX_MESSAGE_SIZE" in message
    assert "many" in message


def test_broken_directory_is_the_termination_message(release: Callable[[], Release]) -> None:
    mail = release()
    mail.install("minimal", {"directory": {"inline": "[tenants.default\n"}, **ONE_OF_EACH})
    for role in ROLES:
        message = mail.cluster.until(f"{role} ended", lambda role=role: _ended(mail, role))
        assert len(message.splitlines()) == 1
        assert "/etc/eilpost/directory.toml: line 1, column 17: not valid TOML" in message


def _waiting(mail: Release, role: str, reason: str) -> str:
    """The node's message about a container that is waiting for this reason."""
    for pod in mail.pods(role):
        for status in pod["status"].get("containerStatuses", []):
            if status["state"].get("waiting", {}).get("reason") == reason:
                message: str = status["state"]["waiting"].get("message", "")
                return message
    return ""


def test_missing_certificate_and_missing_secret_key_are_named(release: Callable[[], Release]) -> None:
    """Two roles of one release, each with its own fault."""
    mail = release()
    nowhere = "/etc/eilpost-kafka/ca/ca.crt"
    tls = [{"name": "EILPOST_LOG__TLS", "value": "true"}, {"name": "EILPOST_LOG__TLS_CA", "value": nowhere}]
    key = {"secretKeyRef": {"name": "mail-eilpost-directory", "key": "no-such-key"}}
    no_key = [{"name": "EILPOST_LOG__SASL_PASSWORD", "valueFrom": key}]
    mail.install("minimal", {"delivery": {"extraEnv": tls}, "router": {"extraEnv": no_key}, **ONE_OF_EACH})
    message = mail.cluster.until("delivery ended", lambda: _ended(mail, "delivery"))
    assert len(message.splitlines()) == 1
    assert f"log.tls_ca: {nowhere}: No such file" in message
    reason = "CreateContainerConfigError"
    message = mail.cluster.until("router waits", lambda: _waiting(mail, "router", reason))
    assert "no-such-key" in message
    assert "mail-eilpost-directory" in message


def _readiness(mail: Release, pod: dict[str, Any]) -> tuple[int, Any]:
    with inside(mail.cluster.namespaces.pid):
        connection = http.client.HTTPConnection(pod["status"]["podIP"], 8025, timeout=10)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


def test_release_recovers_when_kafka_comes(release: Callable[[], Release]) -> None:
    mail = release()
    service, endpoints = manifests.outside_service("later", mail.namespace, broker.PORT)
    mail.cluster.apply([service])
    mail.install("minimal", {"log": {"bootstrap": f"later.{mail.namespace}.svc.cluster.local.:9092"}, **ONE_OF_EACH})
    for role in ("ingress", "router", "delivery"):
        (pod,) = mail.cluster.until(f"{role} runs", lambda role=role: _started(mail, role))
        status, body = _readiness(mail, pod)
        assert status == 503
        assert "later." in json.dumps(body), body
        assert not is_ready(pod)
    for role in ROLES[:3]:
        for pod in mail.pods(role):
            _until_two_probes_failed(mail, pod)
    assert not any(is_ready(pod) for role in ROLES[:3] for pod in mail.pods(role))
    mail.cluster.apply([endpoints])
    for role in ROLES:
        mail.kubectl("rollout", "status", f"deployment/mail-eilpost-{role}", "--timeout=90s", timeout=100)
        for pod in mail.pods(role):
            assert pod["status"]["containerStatuses"][0]["restartCount"] == 0, name_of(pod)


def _failed_probes(mail: Release, pod: dict[str, Any]) -> int:
    """Number of failed /readyz probes, from the node's events."""
    selector = f"reason=Unhealthy,involvedObject.name={name_of(pod)}"
    found = mail.cluster.get("events", "--field-selector", selector, namespace=mail.namespace)["items"]
    return sum(each.get("count") or 1 for each in found if each["message"].startswith("Readiness probe failed"))


def _until_two_probes_failed(mail: Release, pod: dict[str, Any]) -> None:
    """Wait until two more probes have failed."""
    before = _failed_probes(mail, pod)
    mail.cluster.until("two more probes failed", lambda: _failed_probes(mail, pod) >= before + 2)


def _started(mail: Release, role: str) -> list[dict[str, Any]]:
    found = mail.pods(role)
    return [pod for pod in found if any(each.get("started") for each in pod["status"].get("containerStatuses", []))]
