"""The chart's KafkaTopic resources equal the topics of `eilpost topics create`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mail.log.kafka.topics import partition_count, topic_config
from mail.log.topics import ALL_TOPICS, tenant_prefix
from mail.settings import LogSettings
from mail.units import parse_duration
from tests.support.access_rights import rights_of_chart, rights_of_page
from tests.support.chart import helm

pytestmark = pytest.mark.helm


def _made_by_code(settings: LogSettings, prefix: str) -> dict[str, Any]:
    return {
        prefix + topic.name: (
            partition_count(topic, settings),
            settings.replication,
            topic_config(topic, settings),
        )
        for topic in ALL_TOPICS
    }


def _rendered(objects: list[helm.Object]) -> dict[str, Any]:
    specs = [each["spec"] for each in objects if each["kind"] == "KafkaTopic"]
    return {spec["topicName"]: (spec["partitions"], spec["replicas"], spec["config"]) for spec in specs}


def test_strimzi_topics_equal_those_of_the_code() -> None:
    settings = LogSettings(shards=12, delivery_shards=24, replication=3)
    assert _rendered(list(helm.objects("strimzi"))) == _made_by_code(settings, "mail.")


@pytest.mark.parametrize("kept", ["7d", "36h", "1.5h", "500ms", "2w"])
@pytest.mark.parametrize("replication", [1, 2, 3, 5])
def test_topics_follow_settings_and_tenants(kept: str, replication: int, tmp_path: Path) -> None:
    values = {
        "log": {
            "prefix": "Acme_mail.",
            "shards": 6,
            "deliveryShards": 48,
            "replication": replication,
            "durability": "dev",
        },
        "settings": {"log": {"events_retention": kept}},
        "directory": {"inline": '[tenants.big]\nhosting = "dedicated"'},
        "tenants": [{"name": "big", "shards": 24, "deliveryShards": 36}],
    }
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(values), encoding="utf-8")
    settings = LogSettings(shards=6, delivery_shards=48, replication=replication, events_retention=parse_duration(kept))
    of_tenant = settings.model_copy(update={"shards": 24, "delivery_shards": 36})
    wanted = _made_by_code(settings, "Acme_mail.")
    wanted |= _made_by_code(of_tenant, tenant_prefix("Acme_mail.", "big"))
    assert _rendered(helm.template(helm.file_of("strimzi"), changed)) == wanted


def test_rights_of_the_user_equal_those_of_the_page() -> None:
    rights = rights_of_chart()
    assert {(right.resource, right.operation) for right in rights} == rights_of_page()[0]
    assert {(right.name, right.pattern) for right in rights} == {("mail.", "prefix")}


def test_uninstall_deletes_no_topic() -> None:
    for each in helm.of_kind("strimzi", "KafkaTopic"):
        assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert each["metadata"]["labels"]["strimzi.io/cluster"] == "cluster"


def test_pods_log_in_as_the_strimzi_user() -> None:
    user = helm.one("strimzi", "KafkaUser")
    assert user["spec"]["authentication"] == {"type": "scram-sha-512"}
    for each, labels, spec in helm.pod_templates("strimzi"):
        variables = {variable["name"]: variable for variable in spec["containers"][0]["env"]}
        if labels["app.kubernetes.io/component"] == "mailstore":
            assert "EILPOST_LOG__SASL_PASSWORD" not in variables, each
            continue
        assert variables["EILPOST_LOG__SASL_USERNAME"]["value"] == user["metadata"]["name"]
        password = variables["EILPOST_LOG__SASL_PASSWORD"]["valueFrom"]["secretKeyRef"]
        assert password == {"name": user["metadata"]["name"], "key": "password"}
