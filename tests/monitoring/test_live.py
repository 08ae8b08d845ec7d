"""Every panel and every rule on a real Prometheus that scraped a live pipeline under load.

The rules are those that the chart renders for the pipeline's workloads. The pipeline (`pipeline.py`) runs once, for
about a minute: deferrals, failures, an alias, a dedicated tenant, POP3 sessions, DSNs, a rebalance, and an invalid
directory file in the last seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.monitoring.pipeline import Recording, record
from tests.monitoring.queries import (
    Query,
    annotation_queries,
    boards,
    family,
    filled_in,
    metrics,
    named_in_pages,
    panel_queries,
    rule_queries,
)
from tests.monitoring.renderer import Span, draw
from tests.monitoring.rules import alerts, records, rules
from tests.support.chart import helm

pytestmark = [pytest.mark.prometheus, pytest.mark.kafka_cluster, pytest.mark.helm, pytest.mark.timeout(300)]

SECONDS = 50
# OWN: metrics of Prometheus, and the series that the chart records. OUTSIDE: of kube-state-metrics and the kubelet.
ALERTS = {"ALERTS", "ALERTS_FOR_STATE"}
EXPECTED = "namespace_tenant_role:eilpost_expected:info"
OWN = {"up", EXPECTED, *ALERTS}
OUTSIDE = {
    "kube_horizontalpodautoscaler_status_current_replicas",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    folder = tmp_path_factory.mktemp("pipeline")
    with record(folder, seconds=SECONDS, per_second=6, rules=[_rendered_rules(folder)]) as made:
        yield made


def _rendered_rules(folder: Path) -> Path:
    """The rules of a release with the tenants and the namespace of the pipeline, as a file for Prometheus."""
    values, rendered = folder / "values.yaml", folder / "rules.yaml"
    values.write_text("monitoring: {rules: {enabled: true}}")
    objects = helm.template(helm.file_of("dedicated-tenant"), values)
    (groups,) = [each["spec"] for each in objects if each["kind"] == "PrometheusRule"]
    rendered.write_text(yaml.safe_dump(groups))
    return rendered


def _without_data(recording: Recording, queries: Iterator[Query], seconds: int = 0) -> str:
    """`seconds`: the part of the recording that must have data; 0: its end."""
    empty = []
    for query in queries:
        expression = f"last_over_time(({query.expression})[{seconds}s:2s])" if seconds else query.expression
        found = recording.prometheus.query(expression, at=recording.end)
        if not any(sample["value"] == sample["value"] for sample in found):  # NaN is no data
            empty.append(f"{query.where}: {query.expression}")
    return "\n".join(empty)


def test_pipeline_accepted_and_refused_mail(recording: Recording) -> None:
    assert recording.replies["2"] > 100
    assert recording.replies["5"] > 0


def test_every_query_of_every_panel_returns_data(recording: Recording) -> None:
    alerts = {query.where for query in panel_queries() if metrics(query.expression) <= ALERTS}
    quiet = (query for query in panel_queries() if query.where not in alerts)
    assert _without_data(recording, quiet) == ""


def test_every_rule_has_data_to_compare(recording: Recording) -> None:
    inside = (query for query in rule_queries() if not metrics(query.expression) & OUTSIDE)
    assert _without_data(recording, inside, SECONDS) == ""  # perhaps nothing is runnable at the end


def test_every_shard_has_an_owner_and_is_processed(recording: Recording) -> None:
    """The comparison of EilpostConsumerStalled: partitions of the broker, and shards of the routers."""
    all_shards = 'max by (namespace, tenant) (eilpost_shards{role="router"})'
    found = recording.prometheus.query(f"{all_shards} > 0", at=recording.end)
    assert {each["metric"]["tenant"] for each in found} >= {"shared", "acme"}
    for processed in ('eilpost_shards_owned{role="router"}', "eilpost_shards_routed"):
        equal = f"{all_shards} == sum by (namespace, tenant) ({processed})"
        assert len(recording.prometheus.query(equal, at=recording.end)) == len(found), processed


def test_prometheus_evaluates_every_rule_without_an_error(recording: Recording) -> None:
    assert recording.prometheus.rule_errors() == {}
    stored = recording.prometheus.names()
    assert records().keys() | {EXPECTED} <= stored


def test_alerts_appear_in_panels_and_annotations(recording: Recording) -> None:
    """The invalid directory file fires one alert without delay."""
    shown = [query for query in panel_queries() if metrics(query.expression) <= ALERTS]
    assert len(shown) >= 2
    for query in (*shown, *annotation_queries()):
        found = recording.prometheus.query(query.expression, at=recording.end)
        assert found, query.where
    names = {alert["metric"]["alertname"] for alert in recording.prometheus.query("ALERTS", at=recording.end)}
    assert "EilpostDirectoryReloadFailed" in names


def test_no_critical_alert_is_active_at_the_end(recording: Recording) -> None:
    """Without `for`, which is longer than the recording."""
    critical = {name: rule for name, rule in alerts().items() if rule["labels"]["severity"] == "critical"}
    assert len(critical) > 5
    active = {name: recording.prometheus.query(rule["expr"], at=recording.end) for name, rule in critical.items()}
    assert {name: samples for name, samples in active.items() if samples} == {}


def test_expected_workloads_have_targets(recording: Recording) -> None:
    missing = f"{EXPECTED} unless on (namespace, tenant, role) up"
    assert recording.prometheus.query(EXPECTED, at=recording.end)
    assert recording.prometheus.query(missing, at=recording.end) == []


def test_ledger_and_queue_agree_at_every_scrape(recording: Recording) -> None:
    drift = f"max by (pod) (max_over_time(abs(eilpost_ledger_drift_recipients)[{SECONDS}s:1s]))"
    worst = {each["metric"].get("pod", ""): each["value"] for each in recording.prometheus.query(drift, recording.end)}
    assert worst == dict.fromkeys(("router-0", "router-1", "acme-router-0", ""), 0)  # "": the process with all roles
    counted = recording.prometheus.query("sum by (entry) (eilpost_ledger_recipients_total) > 0", recording.end)
    assert {each["metric"]["entry"] for each in counted} >= {"accepted", "expanded", "delivered", "failed"}


@pytest.mark.parametrize("name", ["overview", "ingress", "runtime"])  # together they have every panel type
def test_renderer_draws_the_data_of_prometheus(recording: Recording, name: str, tmp_path: Path) -> None:
    file = tmp_path / "board.png"
    draw(boards()[name], recording.prometheus, Span(recording.begin, recording.end), file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 50_000


def test_every_named_metric_is_exported(recording: Recording) -> None:
    exported = recording.prometheus.types()
    known = records().keys() | OWN | OUTSIDE
    named = {query.where: metrics(query.expression) for query in (*panel_queries(), *annotation_queries())}
    named |= {rule.get("record") or rule["alert"]: metrics(filled_in(rule["expr"])) for rule in rules()}
    named |= named_in_pages()
    unknown = [
        f"{where}: {name}" for where, names in named.items() for name in names - known if family(name, exported) is None
    ]
    assert unknown == []


def test_every_exported_family_is_named(recording: Recording) -> None:
    exported = {
        name: kind for name, kind in recording.prometheus.types().items() if name.startswith(("eilpost_", "process_"))
    }
    assert len(exported) > 50
    named = {name for query in panel_queries() for name in metrics(query.expression)}
    named |= {name for rule in rules() for name in metrics(filled_in(rule["expr"]))}
    used = {found for name in named if (found := family(name, exported)) is not None}
    assert exported.keys() - used == set()
