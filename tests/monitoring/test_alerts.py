"""promtool unit tests of the shipped rules: each alert fires alone on its fault, and none on a healthy cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.monitoring.alert_cases import FAULTS, HEALTHY, QUIET, Fault, steady
from tests.monitoring.rules import FILES, alerts, play, promtool

pytestmark = pytest.mark.prometheus


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, FILES))


def test_no_alert_fires_on_a_healthy_cluster(tmp_path: Path) -> None:
    play(tmp_path, HEALTHY, [])


@pytest.mark.parametrize("changes", QUIET.values(), ids=QUIET.keys())
def test_no_alert_fires_on_transient_conditions(changes: Mapping[str, str | None], tmp_path: Path) -> None:
    for at in ("87m", "89m", "92m"):
        play(tmp_path, {**HEALTHY, **changes}, [], at=at)


def _labels(alert: str, labels: Mapping[str, str]) -> dict[str, str]:
    return {"alertname": alert, "alertstate": "firing", **alerts()[alert]["labels"], **labels}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_an_alert_fires_alone_on_its_fault(fault: Fault, tmp_path: Path) -> None:
    assert all(name in HEALTHY for name in fault.changes), "a fault changes series of the healthy cluster"
    expected = [_labels(fault.alert, fault.labels), *(_labels(other, fault.labels) for other in fault.also)]
    play(tmp_path, {**HEALTHY, **fault.changes}, expected)


def test_ingress_down_fires_for_one_process_with_all_roles(tmp_path: Path) -> None:
    target = '{namespace="box",tenant="shared",role="all"}'
    down = _labels("EilpostIngressDown", {"namespace": "box"})
    play(tmp_path, {f"up{target}": steady(0)}, [down])
    play(tmp_path, {f"up{target}": steady(1), f"eilpost_ready{target}": steady(1)}, [])


def test_ingress_down_fires_for_one_namespace_of_two(tmp_path: Path) -> None:
    other = 'namespace="other",tenant="shared",role="ingress",pod="ingress-1"'
    workers = [f'namespace="other",tenant="shared",role="{role}",pod="{role}-1"' for role in ("router", "delivery")]
    healthy = {**HEALTHY, **{f"{name}{{{each}}}": steady(1) for name in ("up", "eilpost_ready") for each in workers}}
    ready = {f"up{{{other}}}": steady(1), f"eilpost_ready{{{other}}}": steady(1)}
    play(tmp_path, {**healthy, **ready}, [])
    play(tmp_path, healthy, [_labels("EilpostIngressDown", {"namespace": "other"})])


def test_every_alert_has_a_fault() -> None:
    assert {fault.alert for fault in FAULTS} == alerts().keys()


def test_texts_use_only_labels_of_the_alert() -> None:
    for name, rule in alerts().items():
        known = set[str]().union(*(fault.labels for fault in FAULTS if fault.alert == name)) | {"instance"}
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= known, name
