"""Warnings of `helm install` in NOTES.txt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.chart import helm
from tests.support.docs.chart import CHART

pytestmark = pytest.mark.helm

_TEMPLATE = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: notes}
data: {notes: {{ tpl (.Files.Get "notes.txt") . | toJson }}}
"""


def _notes(folder: Path, name: str, *options: str) -> str:
    """The notes of a value set; `helm template` prints only objects, so a copy of the chart has the notes in one."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates" / "notes.yaml").write_text(_TEMPLATE, encoding="utf-8")
    values = ("--values", str(helm.file_of(name)), "--show-only", "templates/notes.yaml")
    text = helm.helm("template", "mail", str(chart), "--kube-version", helm.KUBERNETES, *values, *options)
    notes: str = yaml.safe_load(text)["data"]["notes"]
    return notes


@pytest.mark.parametrize(
    ("name", "options", "warned"),
    [
        ("full", ["ingress.service.externalTrafficPolicy=Cluster"], True),
        ("full", [], False),
        ("full", ["ingress.service.externalTrafficPolicy=Cluster", "ingress.service.type=ClusterIP"], False),
        ("minimal", ["ingress.service.externalTrafficPolicy=Cluster", "ingress.service.type=LoadBalancer"], False),
    ],
    ids=["relay networks behind addresses of nodes", "addresses of clients", "no outside", "no relay networks"],
)
def test_possible_open_relay_is_a_warning(name: str, options: list[str], warned: bool, tmp_path: Path) -> None:
    notes = _notes(tmp_path, name, *(part for option in options for part in ("--set", option)))
    assert "helm test mail" in notes
    assert ("WARNING: ingress.service.externalTrafficPolicy is Cluster" in notes) == warned
    assert ("10.20.0.0/16, fd00:20::/32" in notes) == warned


@pytest.mark.parametrize(("most", "warned"), [(4, False), (5, True)])
def test_fewer_than_three_partitions_for_each_delivery_pod_are_a_warning(
    most: int, warned: bool, tmp_path: Path
) -> None:
    notes = _notes(tmp_path, "keda", "--set", f"delivery.keda.maxReplicas={most}")
    assert ("WARNING: delivery.keda.maxReplicas is 5 of mail-eilpost-delivery" in notes) == warned
    assert ("at most 4, or" in notes) == warned
