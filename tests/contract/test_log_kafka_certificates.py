"""Client certificates for a broker that requires them: a renewed pair is used without a restart, an unusable one is
not.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from deploy.kafka.cluster import Cluster
from mail.log import Usable
from mail.settings import LogSettings
from mail.telemetry import REGISTRY
from tests.support.builders import records as samples
from tests.support.builders.certificates import Authority, Mount
from tests.support.clients.commands import secured_log
from tests.support.kafka_timeouts import set_timeouts
from tests.support.servers import kafka
from tests.support.servers.kafka_log import running, settings_on
from tests.support.servers.ports import wait_until

pytestmark = pytest.mark.kafka_cluster


@pytest.fixture
def strict_node() -> Iterator[Cluster]:
    with kafka.cluster(1, secure=True, settings={"listener.name.tls.ssl.client.auth": "required"}) as cluster:
        yield cluster


def expiry_shown() -> float:
    return REGISTRY.get_sample_value("eilpost_certificate_expiry_timestamp_seconds", {"use": "kafka"}) or 0.0


async def test_new_connections_use_the_renewed_certificate(
    strict_node: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_timeouts(monkeypatch, watch_seconds=0.1)
    secured = strict_node.credentials
    assert secured is not None
    authority = Authority.read(secured.ca, secured.ca.parent / "ca.key")
    mount = Mount(tmp_path / "mounted")
    lifetime = timedelta(seconds=25)  # the first certificate has expired when the broker comes back
    first, second = authority.issue("eilpost", lifetime), authority.issue("eilpost", timedelta(days=10))
    mount.put(first.certificate, first.key)
    ends = datetime.now(UTC) + lifetime
    section = secured_log(
        strict_node,
        url=f"kafka://{strict_node.addresses('tls')}",
        tls_cert=str(mount.certificate),
        tls_key=str(mount.key),
        **dict.fromkeys(("sasl_mechanism", "sasl_username", "sasl_password"), ""),
    )
    settings = settings_on(
        strict_node.addresses("tls"), LogSettings.model_validate(section), shards=1, delivery_shards=1
    )
    async with running(settings) as log:
        await log.append(samples.accepted(1))
        with capture_logs() as lines:
            mount.put(second.certificate, first.key)
            await wait_until(lambda: lines, what="the log line about the mismatched pair")
        assert lines[0]["event"] == "certificates not reloaded, the loaded ones stay in use"
        mount.put(second.certificate, second.key)
        await wait_until(lambda: expiry_shown() > ends.timestamp() + 86400, what="the renewed certificate")
        assert len(log.warnings()) == 1  # it expires in 10 days
        await wait_until(
            lambda: datetime.now(UTC) > ends, deadline_seconds=60, what="the expiry of the first certificate"
        )
        strict_node.restart(1)
        await wait_until(lambda: log.condition() == Usable(), deadline_seconds=30, what="the log")
        await log.append(samples.accepted(2))
