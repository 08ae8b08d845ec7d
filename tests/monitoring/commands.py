"""Checks of commands, settings and chart values named in texts for operators."""

from __future__ import annotations

import re
import shlex
from typing import Any

import typer
import yaml

from eilpost.cli import app
from mail.settings import Settings
from tests.support.docs.chart import VALUES

_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
_KEY = re.compile(r"`([a-z]\w*(?:\.[A-Za-z]\w*)+)(?: =[^`]*)?`")
_ROLES = ("ingress", "router", "delivery", "mailstore")
_CHART: dict[str, Any] = yaml.safe_load(VALUES.read_text())


def called(text: str) -> set[tuple[str, ...]]:
    """Calls of eilpost in code blocks and backquotes, as words after the program's name."""
    lines = [line for block in _BLOCK.findall(text) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]*eilpost [^`\n]*)`", text)
    found = set()
    for line in lines:
        match = re.search(r"(?:^|\s)eilpost ([a-z][^|;&>#]*)", line)
        if match:
            found.add(tuple(shlex.split(match[1])))
    return found


def why_wrong(call: tuple[str, ...]) -> str | None:
    """The error of a call (unknown command or option); None if it is valid."""
    command = typer.main.get_command(app)
    words = list(call)
    while hasattr(command, "commands") and words:
        name = words.pop(0)
        if name not in command.commands:
            return f"eilpost has no command {name}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts} | {"-h", "--help"}
    unknown = [word for word in words if word.startswith("-") and word not in known]
    return f"eilpost {call[0]} has no option {unknown[0]}" if unknown else None


def _has(values: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def wrong_keys(page: str) -> list[str]:
    """Dotted names in backquotes that start like a setting or chart value but are neither."""
    defaults, sections = _CHART["defaults"], Settings.model_fields
    wrong = []
    for name in _KEY.findall(page):
        first, *rest = name.split(".")
        is_setting = first in sections and len(rest) == 1 and rest[0] in sections[first].annotation.model_fields  # type: ignore[union-attr]
        is_value = _has(_CHART, [first, *rest]) or _has(defaults, [first, *rest] if first not in _ROLES else rest)
        if (first in sections or first in _CHART or first in defaults) and not (is_setting or is_value):
            wrong.append(name)
    return wrong
