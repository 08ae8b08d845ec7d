"""Chart rendering with Helm, once per run for each set of values (a file of helm/ci)."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.docs.chart import CHART
from tests.support.golang import GoProgram
from tests.support.kubernetes.programs import HELM

Object = Mapping[str, Any]  # a Kubernetes object as in its manifest

CI = CHART / "ci"
SETS = tuple(sorted(path.stem for path in CI.glob("*.yaml")))
RELEASE, NAMESPACE = "mail", "mail"
KUBERNETES = "1.34.0"
# On client-go 0.34, like Helm 3 and the test cluster, so that they share compiled packages.
HELM_4 = GoProgram("helm", "helm.sh/helm/v4/cmd/helm", "v4.0.5", flags=("-ldflags", "-s -w"), minutes=3)
WORKLOADS = ("Deployment", "Job", "Pod")


class HelmError(Exception):
    """What Helm wrote to stderr."""


def file_of(name: str) -> Path:
    """The values file of a set."""
    return CI / f"{name}.yaml"


def helm(*arguments: str, program: GoProgram = HELM) -> str:
    """The output of a `helm` command. Raises HelmError."""
    done = subprocess.run([program.path, *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


def lint(name: str) -> str:
    """The output of `helm lint --strict` for a set of values. Raises HelmError."""
    return helm("lint", "--strict", "--kube-version", KUBERNETES, str(CHART), "--values", str(file_of(name)))


def template(
    *files: Path,
    kubernetes: str = KUBERNETES,
    program: GoProgram = HELM,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
) -> list[dict[str, Any]]:
    """The objects that Helm renders from values files. Raises HelmError."""
    options = ["--namespace", namespace, "--kube-version", kubernetes, *(f"--values={file}" for file in files)]
    text = helm("template", release, str(CHART), *options, program=program)
    return [each for each in yaml.safe_load_all(text) if each]


@functools.cache
def objects(name: str) -> tuple[Object, ...]:
    """The objects of a set of values."""
    return tuple(template(file_of(name)))


def of_kind(name: str, *kinds: str) -> list[Object]:
    return [each for each in objects(name) if each["kind"] in kinds]


def one(name: str, kind: str, ending: str = "") -> Object:
    """The only object of a kind, or the one whose name ends with `name`."""
    (found,) = [each for each in of_kind(name, kind) if each["metadata"]["name"].endswith(ending)]
    return found


def pod_templates(name: str) -> Iterator[tuple[str, Object, Object]]:
    """Name, labels and pod spec of every object that creates pods."""
    for each in of_kind(name, *WORKLOADS):
        template = each if each["kind"] == "Pod" else each["spec"]["template"]
        yield each["metadata"]["name"], template["metadata"]["labels"], template["spec"]
