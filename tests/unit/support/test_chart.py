"""Generated parts of the chart are current, as written by `make docs`."""

from __future__ import annotations

import json

import yaml

from tests.support.docs import chart

# Keys that the topics Job and the test do not take from `defaults`.
OF_DEPLOYMENTS = {"replicas", "autoscaling", "keda", "podDisruptionBudget", "topologySpread", "probes", "strategy"}


def test_chart_knows_the_variables_of_this_version() -> None:
    assert chart.VARIABLES.read_text(encoding="utf-8") == chart.variables_text(), "run `make docs`"


def test_chart_knows_the_renamed_settings() -> None:
    assert chart.RENAMED_SETTINGS.read_text(encoding="utf-8") == chart.renamed_text(), "run `make docs`"


def test_settings_schema_is_current() -> None:
    assert chart.SCHEMA.read_text(encoding="utf-8") == chart.schema_text(), "run `make docs`"


def test_schema_has_exactly_the_keys_of_values_yaml() -> None:
    """In both directions, except keys that a block may take from `defaults`."""
    schema = json.loads(chart.SCHEMA.read_text(encoding="utf-8"))
    values = yaml.safe_load(chart.VALUES.read_text(encoding="utf-8"))
    assert set(schema["properties"]) - {"global"} == set(values)
    workload = set(schema["$defs"]["workload"]["properties"])
    assert workload == set(values["defaults"])
    of_pods = workload - OF_DEPLOYMENTS
    assert set(schema["properties"]["topics"]["properties"]["job"]["properties"]) - {"hook"} == of_pods
    for key, block in values.items():
        properties = set(_resolved(schema, schema["properties"][key]).get("properties", ()))
        if isinstance(block, dict) and properties and key != "settings":
            assert set(block) <= properties, key
            taken = next((keys for keys in (workload, of_pods) if keys <= properties), set())
            assert properties - set(block) <= taken, key


def _resolved(schema: dict[str, object], part: dict[str, object]) -> dict[str, object]:
    reference = part.get("$ref")
    for name in str(reference).split("/")[1:] if reference else ():
        schema = schema[name]  # type: ignore[assignment]
    return schema if reference else part


def test_every_value_of_a_block_has_a_comment() -> None:
    """The table of values omits a key without a comment on it or below it."""
    values = yaml.safe_load(chart.VALUES.read_text(encoding="utf-8"))
    explained = {key for key, _ in chart.commented(chart.VALUES.read_text(encoding="utf-8"))}
    overrides = set(values["defaults"])
    missing = [
        f"{block}.{key}"
        for block, keys in values.items()
        if isinstance(keys, dict)
        for key in keys
        if block not in explained
        and not any(each == f"{block}.{key}" or each.startswith(f"{block}.{key}.") for each in explained)
        and not (block in ("ingress", "router", "delivery", "mailstore") and key in overrides)
    ]
    assert missing == []
