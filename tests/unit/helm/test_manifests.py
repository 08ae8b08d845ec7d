"""Manifests of every value set in helm/ci pass the schemas of Kubernetes and the operators."""

from __future__ import annotations

import copy
import functools
import json
import re
from typing import Any

import kubernetes_validate
import pytest

from tests.support.chart import crds, helm

pytestmark = pytest.mark.helm

# Strimzi's definitions are in no Maven artifact and no Go module; test_strimzi.py checks its kinds.
STRIMZI = "kafka.strimzi.io/v1"


def _versions() -> list[str]:
    """Minor versions of Kubernetes from the chart's oldest to the newest with schemas."""
    newest = int(kubernetes_validate.latest_version().split(".")[1])
    return [f"1.{minor}" for minor in range(28, newest + 1)]


@functools.cache
def _builtin(name: str) -> list[helm.Object]:
    return [each for each in helm.objects(name) if "." not in each["apiVersion"] or ".k8s.io/" in each["apiVersion"]]


@functools.cache
def _validate(manifest: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


@pytest.mark.parametrize("name", helm.SETS)
def test_lint_reports_nothing(name: str) -> None:
    output = helm.lint(name)
    assert "0 chart(s) failed" in output
    assert not re.search(r"\[(WARNING|ERROR)\]", output)


@pytest.mark.parametrize("name", helm.SETS)
def test_builtin_kinds_pass_the_strict_schemas_of_every_version(name: str) -> None:
    for version in _versions():
        for each in _builtin(name):
            _validate(json.dumps(each), version)


def test_strict_schemas_refuse_an_unknown_field() -> None:
    deployment: Any = copy.deepcopy(helm.one("minimal", "Deployment", "-router"))
    deployment["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readyProbe"):
        kubernetes_validate.validate(deployment, _versions()[-1], strict=True)


@pytest.mark.crds
@pytest.mark.parametrize("name", helm.SETS)
def test_custom_resources_pass_their_definitions(name: str) -> None:
    for each in helm.objects(name):
        if (each["apiVersion"], each["kind"]) in crds.KINDS:
            assert crds.faults(each) == []


@pytest.mark.crds
def test_definitions_refuse_an_unknown_field() -> None:
    scaled: Any = copy.deepcopy(helm.one("keda", "ScaledObject", "-router"))
    scaled["spec"]["minReplicas"] = 2
    assert any("minReplicas" in fault for fault in crds.faults(scaled))


def test_every_kind_is_checked_by_a_schema() -> None:
    """Every rendered kind is checked above, and some value set renders each kind that can be checked."""
    rendered = {(each["apiVersion"], each["kind"]) for name in helm.SETS for each in helm.objects(name)}
    builtin = {(each["apiVersion"], each["kind"]) for name in helm.SETS for each in _builtin(name)}
    assert rendered - builtin - crds.KINDS == {(STRIMZI, "KafkaTopic"), (STRIMZI, "KafkaUser")}
    assert rendered >= crds.KINDS


@pytest.mark.parametrize("version", ["1.28.0", "1.37.0"])
def test_oldest_and_newest_kubernetes_render_the_same(version: str) -> None:
    assert helm.template(helm.file_of("full"), kubernetes=version) == list(helm.objects("full"))


def test_older_kubernetes_is_refused() -> None:
    with pytest.raises(helm.HelmError, match=r"requires kubeVersion: >=1\.28"):
        helm.template(helm.file_of("minimal"), kubernetes="1.27.9")


@pytest.mark.helm_4
@pytest.mark.parametrize("name", helm.SETS)
def test_helm_4_renders_the_same(name: str) -> None:
    assert helm.template(helm.file_of(name), program=helm.HELM_4) == list(helm.objects(name))
