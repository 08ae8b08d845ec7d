"""Settings as commented TOML: the source of the reference page, `eilpost config show` and the example file."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from mail.settings import Settings, dump


def default_toml() -> str:
    """Every section and key with its default and description."""
    return render(Settings())


def render(settings: Settings) -> str:
    """`settings` as TOML; each section and key has its description above it."""
    lines: list[str] = []
    for section, values in dump(settings).items():
        table = type(getattr(settings, section))
        if lines:
            lines.append("")
        lines += [*_comment(table.__doc__ or ""), f"[{section}]"]
        for key, value in values.items():
            lines += [*_comment(_meaning(settings, section, key)), f"{key} = {_toml(value)}"]
    return "\n".join(lines) + "\n"


def default_tables() -> dict[str, dict[str, dict[str, Any]]]:
    """The same for programs: section, key, default and description."""
    settings = Settings()
    return {
        section: {key: {"default": value, "meaning": _meaning(settings, section, key)} for key, value in values.items()}
        for section, values in dump(settings).items()
    }


def _meaning(settings: Settings, section: str, key: str) -> str:
    field = type(getattr(settings, section)).model_fields[key]
    return " ".join((field.description or "").split()) + _bounds(field)


def _bounds(field: FieldInfo) -> str:
    """` 1 to 1000.` for a number with bounds."""
    low, high = (
        next((getattr(part, end) for part in field.metadata if hasattr(part, end)), None) for end in ("ge", "le")
    )
    return "" if low is None or high is None else f" {low} to {high}."


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), 100)]


def _toml(value: Any) -> str:
    """JSON strings, numbers, booleans and lists of them are valid TOML (except a string with DEL)."""
    return json.dumps(value, ensure_ascii=False)
