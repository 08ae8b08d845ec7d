"""Generated parts of the Helm chart: table of values, schema of the settings, known variables, renamed settings.

`make docs` writes them and a test compares them. The table comes from the `# --` comments in values.yaml.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from mail.settings import Settings
from mail.settings_file import variable_name
from mail.settings_renamed import RENAMED
from mail.settings_section import Section
from mail.settings_text import default_tables
from mail.units import parse_duration, parse_size

CHART = Path(__file__).resolve().parents[3] / "helm"
VALUES, SCHEMA, README = CHART / "values.yaml", CHART / "values.schema.json", CHART / "README.md"
VARIABLES, RENAMED_SETTINGS = CHART / "files" / "variables.txt", CHART / "files" / "renamed.yaml"

WORKLOADS = ("ingress", "router", "delivery", "mailstore", "topics.job", "test")

# Maps of Kubernetes: templates pass them on, and null omits one.
_MAY_BE_NULL = ("resources", "behavior", "labels", "dnsConfig")
_FREE = ("strategy", "startup", "liveness", "readiness")

_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z]\w*):")
_COMMENT = re.compile(r" *# -- (?P<text>.+)")
_DURATION = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d|w)$"}
_SIZE = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)$"}


def commented(text: str) -> Iterator[tuple[str, str]]:
    """Keys of values.yaml with a comment, as (dotted key, comment), in file order."""
    return ((key, comment) for key, comment in keys(text) if comment)


def keys(text: str) -> Iterator[tuple[str, str]]:
    """Keys of values.yaml, as (dotted key, comment or empty), in file order."""
    path: list[str] = []
    comment = ""
    for line in text.splitlines():
        if match := _COMMENT.match(line):
            comment = match["text"]
        elif match := _KEY.match(line):
            path[len(match["indent"]) // 2 :] = [match["key"]]
            yield ".".join(path), comment
            comment = ""


def replaced_by(key: str) -> str:
    """The key of `defaults` that a workload's key overrides, whether or not `defaults` has it; "" for other keys."""
    for workload in WORKLOADS:
        if key.startswith(f"{workload}."):
            return f"defaults.{key.removeprefix(f'{workload}.')}"
    return ""


def value_of(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def table() -> str:
    """Key, default and description of every value with a comment, and of the values that override `defaults`."""
    text = VALUES.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    known = {key for key, _ in commented(text)}
    lines = ["| key | default | description |", "|---|---|---|"]
    for key, comment in keys(text):
        replaced = replaced_by(key)
        if replaced not in known:
            replaced = ""
        if not comment and not replaced:
            continue
        value = value_of(values, key)
        if replaced and isinstance(value, dict):
            value = value_of(values, replaced) | value
        default = json.dumps(value, ensure_ascii=False)
        comment = comment or f"Replaces the default of `{replaced}`."
        shown = "see `values.yaml`" if len(default) > 80 else f"`{default}`"
        lines.append(f"| `{key}` | {shown} | {comment.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def settings_schema() -> dict[str, Any]:
    """The JSON schema of `settings`: eilpost's sections and keys."""
    sections = {
        name: _closed({key: _field_schema(field) for key, field in info.annotation.model_fields.items()})
        for name, info in Settings.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
    }
    for name in RENAMED:  # allowed here, so that the template can refuse it with its new name
        section, _, key = name.partition(".")
        sections[section]["properties"][key] = {"deprecated": True}
    return _closed(sections)


def required_schema(values: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Keys with a default: `key: null` would remove them, and the templates need them."""
    defaults = yaml.safe_load(VALUES.read_text(encoding="utf-8"))["defaults"]
    required, properties = [], {}
    for key, value in values.items():
        dotted = ".".join((*path, key))
        replaced = replaced_by(dotted).removeprefix("defaults.")
        if value in (None, "", [], {}) or key in _MAY_BE_NULL or (replaced and replaced in defaults):
            continue
        required.append(key)
        if isinstance(value, dict) and key not in _FREE and (prefix := required_schema(value, (*path, key))):
            properties[key] = prefix
    return ({"required": required} if required else {}) | ({"properties": properties} if properties else {})


def schema_text() -> str:
    """values.schema.json with new schemas of settings and required keys."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    schema["$defs"]["settings"] = settings_schema()
    schema["allOf"] = [required_schema(yaml.safe_load(VALUES.read_text(encoding="utf-8")))]
    return json.dumps(schema, indent=2) + "\n"


def variables_text() -> str:
    """The environment variables that eilpost reads, one per line, for the check of `extraEnv`."""
    names = [variable_name(f"{section}.{key}") for section, keys in default_tables().items() for key in keys]
    return "\n".join(sorted([*names, "EILPOST_CONFIG"])) + "\n"


def renamed_text() -> str:
    """Former and new names of settings, for the checks of `settings` and `extraEnv`."""
    return "".join(f"{old}: {new}\n" for old, new in RENAMED.items())


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _field_schema(field: FieldInfo) -> dict[str, Any]:
    if get_origin(field.annotation) is list:
        (element,) = get_args(field.annotation)
        metadata = getattr(element, "__metadata__", ())
        return {"type": "array", "items": _with_unit(metadata) or {"type": "string"}}
    if get_origin(field.annotation) is Literal:
        return {"enum": list(get_args(field.annotation))}
    if schema := _with_unit(field.metadata):
        return schema
    if field.annotation is bool:
        return {"type": "boolean"}
    if field.annotation is int:
        limits = {
            keyword: getattr(part, attribute)
            for part in field.metadata
            for keyword, attribute in (("minimum", "ge"), ("maximum", "le"))
            if hasattr(part, attribute)
        }
        return {"type": "integer", **limits}
    return {"type": "string"}


def _with_unit(metadata: Any) -> dict[str, Any] | None:
    """The schema of a duration or a size; None for other values."""
    parsers = [part.func for part in metadata if isinstance(part, BeforeValidator)]
    if parse_duration in parsers:
        return _DURATION
    return _SIZE if parse_size in parsers else None
