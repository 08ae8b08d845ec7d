"""String values stay strings in the manifests: none adds an object or becomes a number or a boolean."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import helm
from tests.support.docs.chart import CHART, SCHEMA

pytestmark = pytest.mark.helm

HOSTILE = "x\n---\nkind: Secret\n"

# Two value sets that together render every template; NAME is a Kubernetes name or a key of a Secret.
_SETS = {
    "strimzi": """
hostname: mx.example.test
nameOverride: NAME
fullnameOverride: NAME
imagePullSecrets: [{name: NAME}]
serviceAccount: {name: NAME}
log:
  bootstrap: kafka:9093
  sasl: {mechanism: SCRAM-SHA-512, username: NAME, existingSecret: NAME, passwordKey: NAME}
  tls: {enabled: true, caSecret: NAME, caKey: NAME, clientSecret: NAME, certKey: NAME, keyKey: NAME}
topics: {mode: strimzi, strimzi: {cluster: NAME, user: {create: true}}}
spool: {url: s3://mail, existingSecret: NAME, accessKeyKey: NAME, secretKeyKey: NAME}
mailboxes: {existingClaim: NAME}
directory: {existingSecret: NAME, key: NAME}
defaults: {priorityClassName: NAME, topologySpread: {topologyKeys: [NAME]}}
ingress: {service: {type: LoadBalancer, loadBalancerClass: NAME, loadBalancerSourceRanges: [192.0.2.0/24]}}
router: {keda: {enabled: true}}
tenants: [{name: NAME, sourceAddresses: [192.0.2.10], ehloName: out.example.test}]
networkPolicy: {enabled: true, metricsNamespace: NAME}
monitoring:
  podMonitor: {enabled: true}
  rules: {enabled: true, alerts: {EilpostIngressDown: {for: 10m}}}
  dashboards: {enabled: true, namespace: NAME}
""",
    "job": """
hostname: mx.example.test
serviceAccount: {create: false, name: NAME}
log:
  bootstrap: kafka:9093
  tls: {enabled: true, caSecret: NAME, caKey: NAME}
certificates: {kafkaClient: {enabled: true, issuerName: NAME}}
spool: {volume: {size: 20Gi, storageClassName: NAME, volumeName: NAME}}
mailboxes: {size: 20Gi, storageClassName: NAME, volumeName: NAME}
directory: {inline: "[tenants.default]"}
ingress: {autoscaling: {enabled: true}}
router: {keda: {enabled: true}}
delivery: {relay: "smtp://relay:587", keda: {enabled: true, prometheusAddress: "http://prometheus:9090"}}
networkPolicy: {enabled: true, metricsNamespace: NAME}
monitoring: {serviceMonitor: {enabled: true}, rules: {enabled: true}}
""",
}
_SCHEMA = json.loads(SCHEMA.read_text(encoding="utf-8"))
_REFUSED = re.compile(r"- at '([^']+)'")
_LINE = re.compile(r"execution error at \(\S+\): (.+)")
_HASH = re.compile(r"(?<=-topics)-[0-9a-f]{8}$")
_DOTTED = re.compile(r"[a-z]\w*(?:\.[\w\[\]]+)+")
_RESERVED = re.findall(
    r"^(\w+\.\w+): ", (CHART / "templates" / "_validate.tpl").read_text(encoding="utf-8"), re.MULTILINE
)


def _values(name: str, word: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(_SETS[name].replace("NAME", json.dumps(word)))
    return values


def _places(schema: dict[str, Any], *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """Paths of strings in the schema, including maps and lists of any content."""
    while "$ref" in schema:
        parts, schema = schema["$ref"].split("/")[1:], _SCHEMA
        for part in parts:
            schema = schema[part]
    kind = schema.get("type")
    if kind == "object":
        for key, each in schema.get("properties", {}).items():
            yield from _places(each, *path, key)
        if schema.get("additionalProperties", True):
            each = schema.get("additionalProperties", {"type": "string"})
            yield from _places(each, *path, "EilpostIngressDown" if path[-1] == "alerts" else "x")
        for key in schema.get("required", []):
            if key not in schema.get("properties", {}):
                yield (*path, key)
    elif kind == "array":
        yield from _places(schema["items"], *path, 0)
    elif kind not in ("integer", "number", "boolean"):
        yield path


def _put(values: Any, path: tuple[str | int, ...], value: str) -> None:
    """Set the value at a path; creates missing parents."""
    for key, following in zip(path, (*path[1:], None), strict=True):
        if isinstance(key, int) and len(values) <= key:
            values.append(None)
        there = values[key] if isinstance(key, int) else values.get(key)
        if following is None:
            values[key] = value
        elif there is None:
            values[key] = [] if isinstance(following, int) else {}
        values = values[key]


def _written(path: tuple[str | int, ...]) -> str:
    """A path as it appears in the chart's error messages."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


def _is_under(path: tuple[str | int, ...], key: str) -> bool:
    return re.match(rf"{re.escape(key)}($|[.\[])", _written(path)) is not None


def _is_reserved(path: tuple[str | int, ...]) -> bool:
    """Whether the chart refuses this setting under `settings`."""
    return "settings" in path and any(_is_under(path[path.index("settings") + 1 :], key) for key in _RESERVED)


def _render(folder: Path, values: Any, paths: set[tuple[str | int, ...]], word: str) -> list[tuple[str, str]]:
    """Kind and name of the objects (a Job's without its hash), with `word` at each path. Raises HelmError."""
    values = copy.deepcopy(values)
    for path in paths:
        _put(values, path, word)
    file = folder / "values.yaml"
    file.write_text(json.dumps(values), encoding="utf-8")
    return sorted((each["kind"], _HASH.sub("", each["metadata"]["name"])) for each in helm.template(file))


def _refusal(folder: Path, values: Any, paths: set[tuple[str | int, ...]]) -> str:
    """The chart's error line for hostile strings at the paths, or empty. Raises HelmError for invalid YAML."""
    try:
        _render(folder, values, paths, HOSTILE)
    except helm.HelmError as error:
        if line := _LINE.search(str(error)):
            return line[1]
        raise
    return ""


@pytest.mark.parametrize("name", _SETS)
def test_no_string_value_adds_an_object(name: str, tmp_path: Path) -> None:
    """All strings are hostile at once, then those that the schema accepts, then without each that the chart refuses."""
    values = _values(name, "name")
    paths = {path for path in _places(_SCHEMA) if path[0] in values or path[0] != "tenants"}
    paths = {path for path in paths if not _is_reserved(path)}
    with pytest.raises(helm.HelmError) as refused:
        _render(tmp_path, values, paths, HOSTILE)
    by_schema = set(_REFUSED.findall(str(refused.value)))
    paths = {path for path in paths if "/" + "/".join(map(str, path)) not in by_schema}
    while line := _refusal(tmp_path, values, paths):
        keys = {*line.partition(": ")[0].split(", "), *_DOTTED.findall(line)}
        kept = {path for path in paths if not any(_is_under(path, key) for key in keys)}
        assert kept < paths, line
        paths = kept
    assert ("mailstore", "podLabels", "x") in paths
    assert len(paths) > 150
    assert _render(tmp_path, values, paths, HOSTILE) == _render(tmp_path, values, set(), "")


def _types(part: Any) -> Any:
    """Types of all values in an object, by key."""
    if isinstance(part, dict):
        return {key: _types(each) for key, each in part.items()}
    return [_types(each) for each in part] if isinstance(part, list) else type(part).__name__


@pytest.mark.parametrize("word", ["123", "true", "null"])
@pytest.mark.parametrize("name", _SETS)
def test_names_that_yaml_reads_as_numbers_stay_strings(name: str, word: str, tmp_path: Path) -> None:
    """As the name of the release, of its namespace, and of everything named in the values."""

    def types(word: str) -> Any:
        file = tmp_path / "values.yaml"
        values = _values(name, word)
        if word.isdigit():  # no Service can have such a name
            values["fullnameOverride"] = "mail"
            values["log"].get("sasl", {})["username"] = "mail"  # the chart's KafkaUser has the same name
        file.write_text(json.dumps(values), encoding="utf-8")
        return [_types(each) for each in helm.template(file, release=word, namespace=word)]

    assert types(word) == types("mail")


def test_null_removes_a_value(tmp_path: Path) -> None:
    """Like a key without a value in a file: null equals an empty value."""
    values = tmp_path / "null.yaml"
    values.write_text(
        "{commonLabels: null, settings: null, delivery: {relay: null}, spool: {url: null, endpoint: null},"
        " networkPolicy: {enabled: true, smtpFrom: null}, defaults: {resources: null, podLabels: null},"
        " monitoring: {rules: {enabled: true, alerts: null, alertLabels: null, runbookBaseUrl: null}}}",
        encoding="utf-8",
    )
    text = json.dumps(helm.template(helm.file_of("minimal"), values))
    assert '"PersistentVolumeClaim"' in text
    assert "<nil>" not in text
    assert '"value": "null"' not in text
