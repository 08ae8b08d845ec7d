"""A release that cannot work says why, in one line that `kubectl` shows; when only Kafka is away, it recovers."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.kubernetes import broker, manifests
from tests.support.kubernetes.network import inside
from tests.support.kubernetes.release import ROLES, Release, is_ready, name_of

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm, pytest.mark.docker, pytest.mark.timeout(180)]
ONE_OF_EACH = {"defaults": {"replicas": 1}}


def _ended(mail: Release, role: str) -> str:
    """The termination message of a pod's container that ended."""
    for pod in mail.pods(role):
        for status in pod["status"].get("containerStatuses", []):
            for state in (status["state"], status["lastState"]):
                if "terminated" in state:
                    message: str = state["terminated"].get("message", "")
                    return message
    return ""


def test_wrong_setting_is_the_termination_message(release: Callable[[], Release]) -> None:
    mail = release()
    wrong = [{"name": "EILPOST_INGRESS__MAX_SIZE", "value": "many"}]  # the chart's schema does not look there
    mail.install("minimal", {"ingress": {"extraEnv": wrong}, **ONE_OF_EACH})
    message = mail.cluster.until("ingress ended", lambda: _ended(mail, "ingress"))
    assert len(message.splitlines()) == 1
    assert "EILPOST_INGRESS__MAX_SIZE" in message
    assert "many" in message


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
    time.sleep(5)
    assert not any(is_ready(pod) for role in ROLES[:3] for pod in mail.pods(role))
    mail.cluster.apply([endpoints])
    for role in ROLES:
        mail.kubectl("rollout", "status", f"deployment/mail-eilpost-{role}", "--timeout=90s", timeout=100)
        for pod in mail.pods(role):
            assert pod["status"]["containerStatuses"][0]["restartCount"] == 0, name_of(pod)


def _started(mail: Release, role: str) -> list[dict[str, Any]]:
    found = mail.pods(role)
    return [pod for pod in found if any(each.get("started") for each in pod["status"].get("containerStatuses", []))]
