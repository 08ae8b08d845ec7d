"""The chart's configuration for Prometheus, Grafana and KEDA matches eilpost's code and the shipped rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mail.log.kafka.access import Access
from mail.log.kafka.circuit_breaker import CircuitBreaker
from mail.log.topics import ACCEPTED
from tests.monitoring.rules import promtool
from tests.support.chart import helm
from tests.support.docs.chart import CHART

pytestmark = pytest.mark.helm

RULES = sorted((CHART / "files" / "rules").glob("*.yaml"))
DASHBOARDS = sorted((CHART / "files" / "dashboards").glob("*.json"))
UNITS: dict[str, str] = yaml.safe_load((CHART / "files" / "thresholds.yaml").read_text(encoding="utf-8"))
THRESHOLD = re.compile(r"([<>]=?)\s*[0-9.]+\s*$")


def _shipped() -> list[dict[str, Any]]:
    return [group for path in RULES for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]


def _with(tmp_path: Path, name: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    more = tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump(values), encoding="utf-8")
    return helm.template(helm.file_of(name), more)


def _alerts(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    (found,) = [each for each in objects if each["kind"] == "PrometheusRule"]
    return {rule["alert"]: rule for group in found["spec"]["groups"] for rule in group["rules"] if "alert" in rule}


def test_targets_have_the_labels_of_rules_and_dashboards() -> None:
    (endpoint,) = helm.one("full", "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"]
    assert {each["targetLabel"] for each in endpoint["relabelings"]} == {"namespace", "pod", "role", "tenant"}
    (of_service,) = helm.one("external-tls", "ServiceMonitor")["spec"]["endpoints"]
    assert of_service == endpoint


def test_monitor_scrapes_the_pods_of_the_four_roles() -> None:
    wanted = helm.one("full", "PodMonitor")["spec"]["selector"]["matchLabels"].items()
    scraped = {
        labels["app.kubernetes.io/component"] for _, labels, _ in helm.pod_templates("full") if wanted <= labels.items()
    }
    assert scraped == {"ingress", "router", "delivery", "mailstore"}


def test_rules_are_the_shipped_ones() -> None:
    *rendered, expected = helm.one("full", "PrometheusRule")["spec"]["groups"]
    assert expected["name"] == "eilpost.expected"
    wanted = _shipped()
    for group in wanted:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["annotations"]["runbook_url"] = (
                    "https://example.test/eilpost/" + rule["annotations"]["runbook_url"]
                )
    assert rendered == wanted


@pytest.mark.prometheus
def test_promtool_accepts_the_rules_as_rendered(tmp_path: Path) -> None:
    """With every change that the values can make to a rule."""
    changes = {name: {"threshold": 0.5, "for": "7m", "labels": {"team": "mail"}} for name in UNITS}
    values = {
        "fullnameOverride": "post",
        "mailboxes": {"size": "", "existingClaim": "mail.boxes"},
        "monitoring": {"rules": {"enabled": True, "alerts": changes, "alertLabels": {"site": "a"}}},
    }
    for objects in (helm.objects("full"), _with(tmp_path, "dedicated-tenant", values)):
        (rules,) = [each for each in objects if each["kind"] == "PrometheusRule"]
        file = tmp_path / "rules.yaml"
        file.write_text(yaml.safe_dump(rules["spec"]), encoding="utf-8")
        promtool("check", "rules", "--lint=all", "--lint-fatal", str(file))


def test_autoscaler_alert_selects_those_of_the_release(tmp_path: Path) -> None:
    values = {"fullnameOverride": "post", "monitoring": {"rules": {"enabled": True}}}
    objects = _with(tmp_path, "hpa", values)
    rule = _alerts(objects)["EilpostAutoscalerSaturated"]["expr"]
    selectors = re.findall(r'horizontalpodautoscaler=~"(.+?)"', rule)
    assert len(selectors) == 2
    names = [each["metadata"]["name"] for each in objects if each["kind"] == "HorizontalPodAutoscaler"]
    assert names
    for selector in selectors:
        for name in (*names, *(f"keda-hpa-{name}" for name in names), "other-eilpost-router"):
            assert re.fullmatch(selector, name)


def test_volume_alert_selects_the_claims_of_the_release(tmp_path: Path) -> None:
    values = {
        "fullnameOverride": "post",
        "mailboxes": {"size": "", "existingClaim": "mail.boxes"},
        "monitoring": {"rules": {"enabled": True}},
    }
    objects = _with(tmp_path, "minimal", values)
    selectors = re.findall(r'persistentvolumeclaim=~"(.+?)"', _alerts(objects)["EilpostVolumeAlmostFull"]["expr"])
    (made,) = [each["metadata"]["name"] for each in objects if each["kind"] == "PersistentVolumeClaim"]
    assert len(selectors) == 2
    for selector in selectors:
        assert all(re.fullmatch(selector, name) for name in (made, "mail.boxes", "other-eilpost-spool"))
        assert not re.fullmatch(selector, "mail-boxes")


def test_rules_know_the_expected_workloads(tmp_path: Path) -> None:
    values = {"mailstore": {"replicas": 0}, "monitoring": {"rules": {"enabled": True}}}
    objects = _with(tmp_path, "dedicated-tenant", values)
    (rules,) = [each for each in objects if each["kind"] == "PrometheusRule"]
    (group,) = [each for each in rules["spec"]["groups"] if each["name"] == "eilpost.expected"]
    found = {(rule["labels"]["role"], rule["labels"]["tenant"]) for rule in group["rules"]}
    assert {("router", "shared"), ("delivery", "shared"), ("router", "acme"), ("delivery", "acme")} <= found
    assert ("mailstore", "shared") not in found
    down = _alerts(objects)["EilpostRoleDown"]["expr"]
    assert all(rule["record"] in down and rule["labels"]["namespace"] == "mail" for rule in group["rules"])


def test_alert_can_be_omitted_and_changed(tmp_path: Path) -> None:
    first, second, *_ = [rule for rule in _shipped_alerts() if rule["alert"] in UNITS]
    changes = {
        first["alert"]: {"enabled": False},
        second["alert"]: {"for": "90m", "threshold": 0.125, "labels": {"severity": "info"}},
    }
    rules = {"alerts": changes, "alertLabels": {"team": "mail"}}
    alerts = _alerts(_with(tmp_path, "full", {"monitoring": {"rules": rules}}))
    assert first["alert"] not in alerts
    changed = alerts[second["alert"]]
    assert changed["for"] == "90m"
    assert changed["labels"] == {**second["labels"], "severity": "info", "team": "mail"}
    assert changed["expr"] == THRESHOLD.sub(r"\1 0.125", second["expr"])
    assert all(alert["labels"]["team"] == "mail" for alert in alerts.values())


def _shipped_alerts() -> list[dict[str, Any]]:
    return [rule for group in _shipped() for rule in group["rules"] if "alert" in rule]


def test_threshold_of_every_alert_with_a_unit_can_be_changed(tmp_path: Path) -> None:
    new = {name: 0.6 if unit.startswith("share") else 4711 for name, unit in UNITS.items()}
    changes = {"monitoring": {"rules": {"alerts": {name: {"threshold": value} for name, value in new.items()}}}}
    changed = _alerts(_with(tmp_path, "full", changes))
    for rule in _shipped_alerts():
        name = rule["alert"]
        wanted = THRESHOLD.sub(rf"\1 {new[name]}", rule["expr"]) if name in UNITS else rule["expr"]
        assert changed[name]["expr"] == wanted, name
        assert name not in UNITS or changed[name]["expr"] != rule["expr"], name


def test_dashboards_are_the_shipped_ones() -> None:
    found = {key: text for each in helm.of_kind("full", "ConfigMap") for key, text in each["data"].items()}
    assert found == {path.name: path.read_text(encoding="utf-8") for path in DASHBOARDS}
    assert found
    for each in helm.of_kind("full", "ConfigMap"):
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_pods_are_added_fast_and_removed_slowly_by_default(tmp_path: Path) -> None:
    keda = {"enabled": True, "prometheusAddress": "http://prometheus:9090"}
    scaled = _with(
        tmp_path,
        "minimal",
        {
            "ingress": {"autoscaling": {"enabled": True}},
            "router": {"keda": {"enabled": True}},
            "delivery": {"keda": keda},
        },
    )
    specs = {each["metadata"]["name"]: each["spec"] for each in scaled if "scaleTargetRef" in each.get("spec", {})}
    ingress = specs.pop("mail-eilpost-ingress")
    assert specs.keys() == {"mail-eilpost-router", "mail-eilpost-delivery"}
    doubled = {"type": "Percent", "value": 100, "periodSeconds": 60}
    one_less = {"type": "Pods", "value": 1, "periodSeconds": 120}
    behavior = {
        "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [doubled]},
        "scaleDown": {"stabilizationWindowSeconds": 600, "policies": [one_less]},
    }
    assert (ingress["minReplicas"], ingress["maxReplicas"], ingress["behavior"]) == (2, 6, behavior)
    for spec, most in ((specs["mail-eilpost-router"], 6), (specs["mail-eilpost-delivery"], 4)):
        assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, most)
        assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == behavior
        assert spec["fallback"] == {"failureThreshold": 3, "replicas": 2, "behavior": "currentReplicasIfHigher"}


def _trigger(objects: Any, ending: str) -> dict[str, Any]:
    (scaled,) = [
        each for each in objects if each["kind"] == "ScaledObject" and each["metadata"]["name"].endswith(ending)
    ]
    (trigger,) = scaled["spec"]["triggers"]
    return trigger  # type: ignore[no-any-return]


def _access(prefix: str) -> Access:
    async def never(_host: str, _port: int) -> None:
        raise AssertionError("nothing is to be connected to")

    return Access(("kafka:9092",), prefix, {}, CircuitBreaker(never))


def test_keda_watches_the_group_and_topic_of_the_routers(tmp_path: Path) -> None:
    trigger = _trigger(helm.objects("keda"), "-router")
    access = _access("mail.")
    assert trigger["type"] == "kafka"
    assert trigger["metadata"]["topic"] == access.topic(ACCEPTED)
    assert trigger["metadata"]["consumerGroup"] == access.group("router")
    assert trigger["metadata"]["lagThreshold"] == "500"
    assert trigger["metadata"]["offsetResetPolicy"] == "earliest"
    of_tenant = _with(tmp_path, "dedicated-tenant", {"router": {"keda": {"enabled": True}}})
    trigger, access = _trigger(of_tenant, "-router-acme"), _access("mail.acme.")
    assert trigger["metadata"]["topic"] == access.topic(ACCEPTED)
    assert trigger["metadata"]["consumerGroup"] == access.group("router")


def test_keda_watches_runnable_recipients_for_deliveries() -> None:
    trigger = _trigger(helm.objects("keda"), "-delivery")
    assert trigger["type"] == "prometheus"
    assert trigger["metadata"]["query"] == 'sum(eilpost_queue_runnable_recipients{namespace="mail",tenant="shared"})'
    assert trigger["metadata"]["threshold"] == "2000"
    assert trigger["metadata"]["ignoreNullValues"] == "false"


@pytest.mark.parametrize("name", ["existing-secrets", "external-tls"])
def test_keda_authenticates_like_the_routers(name: str) -> None:
    trigger = _trigger(helm.objects(name), "-router")
    login = helm.one(name, "TriggerAuthentication")
    assert trigger["authenticationRef"] == {"name": login["metadata"]["name"]}
    assert trigger["metadata"]["tls"] == "enable"
    given = {each["parameter"] for key in ("env", "secretTargetRef") for each in login["spec"].get(key, [])}
    assert given == ({"username", "password", "ca"} if name == "existing-secrets" else {"ca", "cert", "key"})
