"""Every panel and every rule on a real Prometheus that scraped a live pipeline under load.

The pipeline runs once, for about a minute (`pipeline.py`): deferrals, failures, an alias, a dedicated tenant, POP3
sessions, DSNs, a rebalance, and an invalid directory file in the last seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
from tests.monitoring.rules import records, rules

pytestmark = [pytest.mark.prometheus, pytest.mark.kafka_cluster, pytest.mark.timeout(300)]

SECONDS = 50
# Prometheus's own metrics. Outside: metrics of kube-state-metrics and the kubelet, with the rules that use them and the
# series that the chart records.
ALERTS = {"ALERTS", "ALERTS_FOR_STATE"}
OWN = {"up", *ALERTS}
OUTSIDE = {
    "kube_horizontalpodautoscaler_status_current_replicas",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    "namespace_tenant_role:eilpost_expected:info",
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    with record(tmp_path_factory.mktemp("pipeline"), seconds=SECONDS, per_second=6) as made:
        yield made


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
    assert records().keys() <= stored


def test_alerts_appear_in_panels_and_annotations(recording: Recording) -> None:
    """The invalid directory file fires one alert without delay."""
    shown = [query for query in panel_queries() if metrics(query.expression) <= ALERTS]
    assert len(shown) >= 2
    for query in (*shown, *annotation_queries()):
        found = recording.prometheus.query(query.expression, at=recording.end)
        assert found, query.where
    names = {alert["metric"]["alertname"] for alert in recording.prometheus.query("ALERTS", at=recording.end)}
    assert "EilpostDirectoryReloadFailed" in names


def test_no_critical_alert_fires_on_the_pipeline(recording: Recording) -> None:
    assert recording.prometheus.query('ALERTS{alertstate="firing",severity="critical"}', at=recording.end) == []


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
