"""Pods lost under load in every way that Kubernetes loses them: accepted mail is delivered.

Only deliveries in flight in the lost process may be duplicated.
"""

from __future__ import annotations

import contextlib
import json
import smtplib
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.support.kubernetes.cluster import CommandError, Kubernetes
from tests.support.kubernetes.configuration import NODE
from tests.support.kubernetes.network import inside
from tests.support.kubernetes.release import IN_FLIGHT, ROLES, Release, is_ready, name_of
from tests.support.kubernetes.traffic import assert_nothing_lost, sending

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm, pytest.mark.docker, pytest.mark.timeout(180)]

# A POP3 session that prints all subjects. `delete` and `wait` mark the messages as deleted; `wait` sends no QUIT.
SESSION = """
import poplib, sys
box = poplib.POP3("127.0.0.1", 2110, timeout=60)
box.user("alice@example.test"); box.pass_("eilpost-demo")
for number in range(1, box.stat()[0] + 1):
    lines = box.retr(number)[1]
    print(next(line for line in lines if line.startswith(b"Subject: "))[9:].decode())
    if sys.argv[1] != "keep":
        box.dele(number)
if sys.argv[1] == "wait":
    print("marked", flush=True)
    box.sock.recv(1)
    sys.exit("the connection ended")
box.quit()
"""


@pytest.fixture(autouse=True)
def _ready_again(mail: Release) -> Iterator[None]:
    yield
    for role in ROLES:
        mail.kubectl("rollout", "status", f"deployment/mail-eilpost-{role}", "--timeout=90s", timeout=100)


def _restarts(mail: Release, role: str) -> dict[str, int]:
    return {name_of(pod): pod["status"]["containerStatuses"][0]["restartCount"] for pod in mail.pods(role)}


def _victim(mail: Release, role: str) -> tuple[str, int]:
    """The pod with the fewest restarts, and their number: the node waits longer before each further restart."""
    restarts = _restarts(mail, role)
    victim = min(restarts, key=lambda pod: restarts[pod])
    return victim, restarts[victim]


def _until_restarted(mail: Release, role: str, victim: str, before: int) -> dict[str, Any]:
    """Wait until the container has restarted and its process is ready; how the process before ended."""

    def ended() -> dict[str, Any]:
        (pod,) = (pod for pod in mail.pods(role) if name_of(pod) == victim)
        (status,) = pod["status"]["containerStatuses"]
        if status["restartCount"] != before + 1 or not is_ready(pod):
            raise CommandError(f"{before} restarts before, now {status}")
        last: dict[str, Any] = status["lastState"]["terminated"]
        return last

    found: dict[str, Any] = mail.until(role, f"{victim} was restarted and is ready", ended, timeout=120)
    return found


def _evict(mail: Release, pod: str) -> None:
    """Evict a pod, like `kubectl drain`. Raises CommandError if a disruption budget forbids it."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": mail.namespace},
    }
    path = f"/api/v1/namespaces/{mail.namespace}/pods/{pod}/eviction"
    mail.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


def _is_replaced(mail: Release, victim: str) -> bool:
    return [(name_of(pod) != victim, is_ready(pod)) for pod in mail.pods("mailstore")] == [(True, True)]


def _send_to_mailbox(mail: Release, subjects: Iterable[str]) -> None:
    host, port = mail.address("ingress")
    with inside(mail.cluster.namespaces.pid), smtplib.SMTP(host, port, timeout=30) as client:
        for subject in subjects:
            client.sendmail("bob@example.test", ["alice@example.test"], f"Subject: {subject}\r\n\r\nHello\r\n")


def _session_command(mail: Release, end: str) -> tuple[str, ...]:
    (pod,) = mail.pods("mailstore")
    return ("exec", name_of(pod), "--", "python", "-c", SESSION, end)


def _subjects(mail: Release, end: str = "keep") -> set[str]:
    """Of all messages in alice's mailbox."""
    return set(mail.kubectl(*_session_command(mail, end)).splitlines())


@contextlib.contextmanager
def _open_session(mail: Release) -> Iterator[subprocess.Popen[str]]:
    """A POP3 session that marked every message of alice's mailbox as deleted and waits for its connection to end."""
    session = mail.cluster.popen_kubectl("--namespace", mail.namespace, *_session_command(mail, "wait"))
    with session:
        try:
            assert session.stdout is not None
            while session.stdout.readline() != "marked\n":
                assert session.poll() is None
            yield session
        finally:
            session.kill()


@pytest.mark.parametrize("role", ["ingress", "router", "delivery"])
def test_killed_process_loses_nothing(mail: Release, role: str) -> None:
    """SIGKILL to the process of one pod, from the node."""
    victim, before = _victim(mail, role)
    with sending(mail) as traffic:
        mail.kill(victim)
        ended = _until_restarted(mail, role, victim, before)
        result = traffic.result()
    assert ended["exitCode"] == 128 + 9
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


def test_pods_out_of_memory_lose_nothing(mail: Release) -> None:
    """The containers of a router and of a delivery process reach their memory limits; the kernel kills the process."""
    victims = {role: _victim(mail, role) for role in ("router", "delivery")}
    with sending(mail) as traffic:
        for victim, _ in victims.values():
            mail.exhaust_memory(victim)
        for role, (victim, before) in victims.items():
            assert _until_restarted(mail, role, victim, before)["reason"] == "OOMKilled"
        result = traffic.result()
    assert result["accepted"] > 2 * IN_FLIGHT  # otherwise the bound proves nothing
    assert_nothing_lost(result, most_duplicates=IN_FLIGHT)


def test_lost_mailstore_keeps_the_messages_of_open_sessions(mail: Release) -> None:
    """A POP3 session deletes the messages that it marked at QUIT only (RFC 1939, section 6).

    Both sessions end without QUIT: the first by SIGKILL, the second by an eviction.
    """
    victim, before = _victim(mail, "mailstore")
    subjects = {f"message {number}" for number in range(10)}
    with sending(mail) as traffic:
        _send_to_mailbox(mail, subjects)
        mail.cluster.until("all messages are in the mailbox", lambda: subjects <= _subjects(mail))
        with _open_session(mail) as session:
            mail.kill(victim)
            assert _until_restarted(mail, "mailstore", victim, before)["exitCode"] == 128 + 9
            assert session.wait(30) != 0
        with _open_session(mail) as session:
            _evict(mail, victim)
            mail.cluster.until("another pod is ready", lambda: _is_replaced(mail, victim))
            assert session.wait(30) != 0
        assert subjects <= _subjects(mail, "delete")
        assert not subjects & _subjects(mail)
        result = traffic.result()
    assert_nothing_lost(result)


def test_drained_node_loses_nothing(mail: Release, kubernetes: Kubernetes) -> None:
    """The only node is drained: budgets release the next pod of a role when its successor runs on another node.

    There is none, so the drain cannot finish before the node is schedulable again.
    """
    everything = {name_of(pod) for role in ROLES for pod in mail.pods(role)}
    selector = "app.kubernetes.io/instance=mail,app.kubernetes.io/component in (ingress,router,delivery)"
    with sending(mail) as traffic:
        with pytest.raises(CommandError, match="disruption budget"):
            kubernetes.kubectl("drain", NODE, "--pod-selector", selector, "--delete-emptydir-data", "--timeout=4s")
        assert any(not is_ready(pod) for pod in mail.pods())
        kubernetes.kubectl("uncordon", NODE)
        for role in ROLES:
            mail.kubectl("rollout", "status", f"deployment/mail-eilpost-{role}", "--timeout=60s", timeout=70)
        result = traffic.result()
    assert {name_of(pod) for role in ROLES for pod in mail.pods(role)} != everything
    assert_nothing_lost(result)
