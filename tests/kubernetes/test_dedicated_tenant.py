"""A dedicated tenant: its mail uses its own topics, routers, delivery processes and source addresses."""

from __future__ import annotations

import asyncio
import json
import re
import smtplib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.containers import images
from tests.support.kubernetes.cluster import Kubernetes
from tests.support.kubernetes.configuration import NODE
from tests.support.kubernetes.namespaces import HOST
from tests.support.kubernetes.network import inside
from tests.support.kubernetes.prometheus import Prometheus
from tests.support.kubernetes.release import CHART, ROLES, Release, name_of
from tests.support.servers.scripted_remote import ScriptedRemote

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm, pytest.mark.docker, pytest.mark.timeout(180)]

(ACME,) = yaml.safe_load((CHART / "ci" / "dedicated-tenant.yaml").read_text())["tenants"]
# The end offsets of each topic, summed over its partitions.
END_OFFSETS = """
import asyncio, collections, json, sys
from aiokafka import AIOKafkaConsumer
async def main(bootstrap, *topics):
    async with AIOKafkaConsumer(*topics, bootstrap_servers=bootstrap) as consumer:
        ends = collections.Counter()
        for partition, end in (await consumer.end_offsets(consumer.assignment())).items():
            ends[partition.topic] += end
    print(json.dumps(ends))
asyncio.run(main(*sys.argv[1:]))
"""


def _send(release: Release, sender: str, recipient: str) -> str:
    """The queue id of a message that ingress accepted."""
    host, port = release.address("ingress")
    with inside(release.cluster.namespaces.pid), smtplib.SMTP(host, port, timeout=30) as client:
        client.ehlo()
        for command, argument in (("MAIL", f"FROM:<{sender}>"), ("RCPT", f"TO:<{recipient}>")):
            assert client.docmd(command, argument)[0] == 250
        code, reply = client.data(b"Subject: of a tenant\r\n\r\nHello\r\n")
    found = re.search(r"[0-9A-Z]{26}", reply.decode())
    assert code == 250
    assert found is not None
    return found[0]


def _end_offsets(release: Release) -> dict[str, int]:
    topics = {
        f"{release.namespace}.{tenant}{name}": f"{tenant}{name}"
        for tenant in ("", "acme.")
        for name in ("accepted", "dispatched", "attempted")
    }
    command = ("exec", "deployment/mail-eilpost-router", "--", "python", "-c", END_OFFSETS, f"{HOST}:9092", *topics)
    return {topics[topic]: end for topic, end in json.loads(release.kubectl(*command)).items()}


def _wait_closed(release: Release, queue_id: str) -> str:
    """The message's history, when it is complete."""
    command = ("exec", "deployment/mail-eilpost-router", "--", "eilpost", "trace", "--json", queue_id)

    def history() -> str:
        printed = release.kubectl(*command)
        return printed if json.loads(printed)["state"] == "closed" else ""

    found: str = release.cluster.until(f"{queue_id} is closed", history, timeout=30)
    return found


def _worker_logs(release: Release, tenant: str) -> str:
    selector = f"app.kubernetes.io/component in (router,delivery),eilpost/tenant={tenant}"
    return release.kubectl("logs", "--selector", selector, "--tail=-1")


@pytest.fixture(scope="module")
def mail(operators: Kubernetes) -> Iterator[Release]:
    """A release with the tenant `acme`, on a node with the label that the value set's nodeSelector requires."""
    operators.kubectl("label", "node", NODE, "example.test/network=acme")
    with operators.namespace("dedicated-tenant") as namespace:
        release = Release(operators, namespace, images.image().tag)
        over = {"defaults": {"replicas": 1}, "monitoring": {"podMonitor": {"enabled": True}}}
        release.install("dedicated-tenant", over, "--wait")
        yield release
    operators.kubectl("label", "node", NODE, "example.test/network-")


@pytest.mark.prometheus
def test_targets_of_prometheus_have_role_and_tenant(mail: Release, prometheus: Prometheus) -> None:
    """By the relabelings of the chart's PodMonitor, which rules and dashboards need."""
    monitor = mail.cluster.get("podmonitor", "mail-eilpost", namespace=mail.namespace)
    prometheus.scrape(monitor, mail.pods())
    expected = [
        {"namespace": mail.namespace, "pod": name_of(pod), "role": role, "tenant": tenant}
        for role in ROLES
        for pod in mail.pods(role)
        for tenant in [pod["metadata"]["labels"]["eilpost/tenant"]]
    ]
    assert {target["tenant"] for target in expected} == {"acme", "shared"}

    def labels(expression: str) -> list[dict[str, Any]]:
        in_namespace = f'{expression}{{namespace="{mail.namespace}"}}'
        found = prometheus.query(f"sum by (namespace, pod, role, tenant) ({in_namespace})")
        return sorted(found, key=lambda target: target["pod"])

    expected.sort(key=lambda target: target["pod"])
    mail.cluster.until("all targets are scraped", lambda: labels("eilpost_build_info") == expected)
    assert labels("up") == expected


async def test_mail_of_a_dedicated_tenant_has_its_own_topics_workers_and_source_addresses(mail: Release) -> None:
    remote = ScriptedRemote(host=HOST, port=mail.sink_port)
    with inside(mail.cluster.namespaces.pid):
        await remote.start()
    try:
        pods = {pod["metadata"]["labels"]["eilpost/tenant"]: pod for pod in mail.pods("delivery")}
        for address in ACME["sourceAddresses"]:
            mail.add_address(name_of(pods["acme"]), address)
        of_acme = [await asyncio.to_thread(_send, mail, "bob@elsewhere.test", "carol@acme.test")]
        for count in (1, 2):
            of_acme.append(await asyncio.to_thread(_send, mail, "carol@acme.test", "bob@elsewhere.test"))
            await remote.wait_messages(count, timeout=30)
            await remote.drop_connections()  # the next connection comes from the next address
        to_mailbox = await asyncio.to_thread(_wait_closed, mail, of_acme[0])
        ends = await asyncio.to_thread(_end_offsets, mail)
        shared = await asyncio.to_thread(_send, mail, "alice@example.test", "bob@elsewhere.test")
        await remote.wait_messages(3, timeout=30)
    finally:
        await remote.stop()

    assert '"delivered"' in to_mailbox
    assert {topic for topic, end in ends.items() if end} == {"acme.accepted", "acme.dispatched", "acme.attempted"}
    logs = {tenant: _worker_logs(mail, tenant) for tenant in ("acme", "shared")}
    for queue_id, tenant, other in (*((each, "acme", "shared") for each in of_acme), (shared, "shared", "acme")):
        assert queue_id in logs[tenant]
        assert queue_id not in logs[other]
    *acme_sessions, shared_session = (remote.sessions[message.session] for message in remote.messages)
    assert {session.peer for session in acme_sessions} == set(ACME["sourceAddresses"])
    assert {session.commands[0] for session in acme_sessions} == {f"EHLO {ACME['ehloName']}"}
    assert shared_session.peer == pods["shared"]["status"]["podIP"]
    assert shared_session.commands[0] == "EHLO mx.example.test"
