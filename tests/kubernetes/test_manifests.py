"""The API server accepts the rendered objects of every value set with strict field validation."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.support.kubernetes.cluster import CommandError, Kubernetes
from tests.support.kubernetes.programs import KUBERNETES_VERSION
from tests.support.kubernetes.release import CHART

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm]

VALUE_SETS = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
NOT_DEFINED_HERE = "kafka.strimzi.io/"  # Strimzi's definitions are in no Go module


@pytest.fixture(scope="module")
def namespace(operators: Kubernetes) -> str:
    operators.kubectl("create", "namespace", "manifests")
    for account in ("mail-eilpost", "mail"):  # a pod without its service account is refused, also in a dry run
        operators.kubectl("create", "serviceaccount", account, "--namespace", "manifests")
    return "manifests"


def _check(cluster: Kubernetes, namespace: str, objects: list[object]) -> str:
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    options = ("--dry-run=server", "--validate=strict", "--namespace", namespace)
    return cluster.kubectl("apply", *options, "-f", "-", stdin=listed)


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_value_set_is_accepted(operators: Kubernetes, namespace: str, value_set: str) -> None:
    file = str(CHART / "ci" / f"{value_set}.yaml")
    where = ("--namespace", namespace, "--kube-version", KUBERNETES_VERSION)
    rendered = operators.helm("template", "mail", str(CHART), *where, "--values", file)
    objects = [each for each in yaml.safe_load_all(rendered) if each]
    known = [each for each in objects if not each["apiVersion"].startswith(NOT_DEFINED_HERE)]
    accepted = _check(operators, namespace, known)
    assert accepted.count("(server dry run)") == len(known) > 10


@pytest.mark.parametrize("kind", ["Deployment", "ScaledObject", "PodMonitor", "PrometheusRule", "Certificate"])
def test_unknown_field_is_refused(operators: Kubernetes, namespace: str, kind: str) -> None:
    version = {
        "Deployment": "apps/v1",
        "ScaledObject": "keda.sh/v1alpha1",
        "Certificate": "cert-manager.io/v1",
    }.get(kind, "monitoring.coreos.com/v1")
    wrong = {"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, "spec": {"unknownField": 1}}
    with pytest.raises(CommandError, match='unknown field "unknownField"'):
        _check(operators, namespace, [wrong])
