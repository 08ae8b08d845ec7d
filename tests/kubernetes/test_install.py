"""A value set of the chart is installed as a user installs it: all pods get ready, and mail flows."""

from __future__ import annotations

import poplib
import smtplib
import time
from collections.abc import Callable

import pytest

from tests.support.kubernetes.network import inside
from tests.support.kubernetes.release import ROLES, Release, is_ready, name_of

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm, pytest.mark.docker]

ALICE, PASSWORD = "alice@example.test", "eilpost-demo"
MESSAGE = f"From: bob@example.test\r\nTo: {ALICE}\r\nSubject: %s\r\n\r\nThrough the Service.\r\n"


def _send(release: Release, subject: str) -> None:
    host, port = release.address("ingress")
    with inside(release.cluster.namespaces.pid), smtplib.SMTP(host, port, timeout=30) as client:
        client.sendmail("bob@example.test", [ALICE], MESSAGE % subject)


def _fetch(release: Release) -> bytes:
    """The first message of alice's mailbox, waited for."""
    with release.cluster.forwarded("pop3", "service/mail-eilpost-mailstore", 110, release.namespace) as port:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with inside(release.cluster.namespaces.pid):
                client = poplib.POP3("127.0.0.1", port, timeout=30)
                client.user(ALICE)
                client.pass_(PASSWORD)
                lines = client.retr(1)[1] if client.stat()[0] else []
                client.quit()
            if lines:
                return b"\n".join(lines)
            time.sleep(0.5)
    raise AssertionError("no message came")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("value_set", ["minimal"])
def test_value_set_is_installed_and_mail_flows(release: Callable[[], Release], value_set: str) -> None:
    mail = release()
    printed = mail.install(value_set, None, "--wait")
    assert f"is installed as mail in namespace {mail.namespace}" in printed
    for role in ROLES:
        pods = mail.pods(role)
        assert pods
        assert all(is_ready(pod) for pod in pods), [name_of(pod) for pod in pods]
    _send(mail, value_set)
    assert f"Subject: {value_set}".encode() in _fetch(mail)
    mail.helm("test", "--timeout=60s")
