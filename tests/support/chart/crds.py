"""Strict JSON schemas of custom resources: an unknown field is refused.

The definitions are in the Go modules of KEDA, prometheus-operator and cert-manager, which Go downloads and verifies.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jsonschema
import yaml

from tests.support.golang import GoModuleError, module_folder, why_no_go

# API version and kind: Go module, version and file.
_DEFINITIONS = {
    ("keda.sh/v1alpha1", kind): ("github.com/kedacore/keda/v2", "v2.19.0", f"config/crd/bases/keda.sh_{plural}.yaml")
    for kind, plural in (("ScaledObject", "scaledobjects"), ("TriggerAuthentication", "triggerauthentications"))
} | {
    ("monitoring.coreos.com/v1", kind): (
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        f"example/prometheus-operator-crd/monitoring.coreos.com_{plural}.yaml",
    )
    for kind, plural in (
        ("PodMonitor", "podmonitors"),
        ("ServiceMonitor", "servicemonitors"),
        ("PrometheusRule", "prometheusrules"),
    )
}
_DEFINITIONS["cert-manager.io/v1", "Certificate"] = (
    "github.com/cert-manager/cert-manager",
    "v1.19.1",
    "deploy/crds/cert-manager.io_certificates.yaml",
)
KINDS = frozenset(_DEFINITIONS)
_failures: list[str] = []


def why_missing() -> str | None:
    return _failures[0] if _failures else why_no_go("the definitions of custom resources")


def prepare() -> None:
    """Download the modules. After a failure `why_missing` returns the reason."""
    if why_missing() is not None:
        return
    try:
        for module, version, _ in _DEFINITIONS.values():
            module_folder(module, version)
    except GoModuleError as error:
        _failures.append(str(error))


@functools.cache
def _validator(version: str, kind: str) -> jsonschema.Draft202012Validator:
    module, module_version, file = _DEFINITIONS[version, kind]
    text = (module_folder(module, module_version) / file).read_text(encoding="utf-8")
    (definition,) = [each for each in yaml.safe_load_all(text) if each]
    (schema,) = [
        each["schema"]["openAPIV3Schema"]
        for each in definition["spec"]["versions"]
        if each["name"] == version.partition("/")[2]
    ]
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    """The schema with the rules of the API server's strict field validation."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        keeps = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        if not keeps:
            strict["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
        strict.pop("anyOf", None)
    return strict


def faults(manifest: Mapping[str, Any]) -> list[str]:
    """Validation errors of a custom resource."""
    validator = _validator(manifest["apiVersion"], manifest["kind"])
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]
