"""Value sets of the chart, installed as by a user: all pods become ready and mail flows."""

from __future__ import annotations

import poplib
import smtplib
import time
from collections.abc import Callable

import pytest

from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.network import inside
from tests.support.kubernetes.release import ROLES, Release, is_ready, name_of

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm, pytest.mark.docker]

ALICE, PASSWORD = "alice@example.test", "eilpost-demo"
MESSAGE = f"From: bob@example.test\r\nTo: {ALICE}\r\nSubject: %s\r\n\r\nThrough the Service.\r\n"


def _send(release: Release, subject: str) -> None:
    host, port = release.address("ingress")
    with inside(release.cluster.namespaces.pid), smtplib.SMTP(host, port, timeout=30) as client:
        client.sendmail("bob@example.test", [ALICE], MESSAGE % subject)


def _fetch(release: Release, subject: str) -> None:
    """Wait until alice's mailbox, which other tests use too, has a message with this subject."""
    with release.cluster.forwarded("pop3", "service/mail-eilpost-mailstore", 110, release.namespace) as port:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with inside(release.cluster.namespaces.pid):
                client = poplib.POP3("127.0.0.1", port, timeout=30)
                client.user(ALICE)
                client.pass_(PASSWORD)
                numbers = range(client.stat()[0], 0, -1)
                found = any(f"Subject: {subject}".encode() in client.retr(number)[1] for number in numbers)
                client.quit()
            if found:
                return
            time.sleep(0.5)
    raise AssertionError(f"no message with the subject {subject}")


def _assert_works(release: Release) -> None:
    """Check that all pods are ready, that a message through the Service is fetched by POP3, and that `helm test`
    passes.
    """
    for role in ROLES:
        pods = release.pods(role)
        assert pods
        assert all(is_ready(pod) for pod in pods), [name_of(pod) for pod in pods]
    _send(release, release.namespace)
    _fetch(release, release.namespace)
    printed = release.helm("test", "--timeout=60s")
    assert "Phase:          Succeeded" in printed


def test_minimal_values_work(mail: Release) -> None:
    assert "is installed as mail in namespace mail" in mail.helm("status")
    _assert_works(mail)


@pytest.mark.timeout(300)
def test_full_values_work(operators: Kubernetes, release: Callable[[], Release]) -> None:
    full = release()
    printed = full.install("full", None, "--wait", seconds=180)
    assert f"is installed as mail in namespace {full.namespace}" in printed
    assert len(full.pods("ingress")) == 3
    _assert_works(full)
    found = full.cluster.get("podmonitor,prometheusrule,configmap", namespace=full.namespace)["items"]
    assert {each["kind"] for each in found} == {"PodMonitor", "PrometheusRule", "ConfigMap"}
