"""Value sets of the chart, installed as by a user: all pods become ready and mail flows."""

from __future__ import annotations

import poplib
import re
import smtplib
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.containers import images
from tests.support.docs.shell_blocks import blocks
from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.configuration import HOST, OUTSIDE
from tests.support.kubernetes.network import inside
from tests.support.kubernetes.release import CHART, HELM_INSTALL, HELM_TEST, ROLES, Release, is_ready, name_of

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
    assert "Phase:          Succeeded" in release.run_of_readme(HELM_TEST)


def test_minimal_values_work(mail: Release) -> None:
    assert "is installed as mail in namespace mail" in mail.helm("status")
    _assert_works(mail)


def test_readme_of_the_chart_has_the_command_of_the_readme() -> None:
    (command,) = blocks((CHART / "README.md").read_text(), "")
    assert f"{' '.join(command.replace(chr(92), '').split())} --wait" == " ".join(HELM_INSTALL.split())


FORWARDED = """
set -eu
%s &
%s &
trap 'kill $(jobs -p)' EXIT
for port in 2525 2110; do
  until (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null; do sleep 0.1; done
done
"""


@pytest.mark.swaks
def test_commands_of_the_notes_send_and_fetch(mail: Release) -> None:
    notes = [line.strip() for line in mail.helm("status").splitlines()]
    forwarded = FORWARDED % tuple(line for line in notes if " port-forward " in line)
    (swaks,) = (line for line in notes if line.startswith("swaks "))
    (curl,) = (line for line in notes if line.startswith("curl "))
    swaks = swaks.replace("USER@YOUR-DOMAIN", ALICE) + " --header 'Subject: Notes'"
    curl = curl.replace("USER@YOUR-DOMAIN", f"{ALICE}:{PASSWORD}")
    mail.cluster.run("bash", "-s", stdin=forwarded + swaks)
    _fetch(mail, "Notes")
    fetched = mail.cluster.run("bash", "-s", stdin=forwarded + curl)
    assert re.search(r"^1 \d+$", fetched, re.MULTILINE)


@pytest.fixture(scope="module")
def full(operators: Kubernetes) -> Iterator[Release]:
    """A release with full values that relays for the pods' network only, which is also that of the node's bridge."""
    with operators.namespace("full") as namespace:
        release = Release(operators, namespace, images.image().tag)
        relay = {"settings": {"ingress": {"relay_networks": ["10.244.0.0/24"]}}}
        printed = release.install("full", relay, "--wait", seconds=180)
        assert f"is installed as mail in namespace {namespace}" in printed
        yield release


@pytest.mark.timeout(300)
def test_full_values_work(full: Release) -> None:
    assert len(full.pods("ingress")) == 3
    _assert_works(full)
    found = full.cluster.get("podmonitor,prometheusrule,configmap", namespace=full.namespace)["items"]
    assert {each["kind"] for each in found} == {"PodMonitor", "PrometheusRule", "ConfigMap"}


RELAY = """
import smtplib, sys
with smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=30) as client:
    client.ehlo()
    client.mail("bob@example.test")
    print(*client.rcpt("someone@elsewhere.test"))
"""


@pytest.mark.timeout(300)
def test_external_traffic_policy_local_keeps_the_address_of_an_outside_client(full: Release) -> None:
    """With `Cluster` the client has an address of the node, for which this release relays."""

    def relays() -> str:
        service = full.cluster.get("service", "mail-eilpost-ingress", namespace=full.namespace)["spec"]
        assert service["type"] == "NodePort"
        port = str(service["ports"][0]["nodePort"])
        return full.cluster.run_outside(sys.executable, "-c", RELAY, HOST, port)

    assert "relaying denied" in relays()
    refused = full.kubectl("logs", "--selector", "app.kubernetes.io/component=ingress", "--tail=-1")
    assert f'"client":"{OUTSIDE}"' in refused
    policy = ("patch", "service", "mail-eilpost-ingress", "--patch")
    full.kubectl(*policy, '{"spec": {"externalTrafficPolicy": "Cluster"}}')
    try:
        full.cluster.until("the node's address is used", lambda: relays().startswith("250"))
    finally:
        full.kubectl(*policy, '{"spec": {"externalTrafficPolicy": "Local"}}')
