"""The commands and settings that texts for operators name, looked up in the program itself."""

from __future__ import annotations

import re
import shlex

import typer

from eilpost.cli import app
from mail.settings import Settings

_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
_SETTING = re.compile(r"`([a-z]+\.[a-z_0-9]+)(?: =[^`]*)?`")


def called(text: str) -> set[tuple[str, ...]]:
    """The calls of eilpost in code blocks and in backquotes, as words after the program's name."""
    lines = [line for block in _BLOCK.findall(text) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]*eilpost [^`\n]*)`", text)
    found = set()
    for line in lines:
        match = re.search(r"(?:^|\s)eilpost ([a-z][^|;&>#]*)", line)
        if match:
            found.add(tuple(shlex.split(match[1])))
    return found


def why_wrong(call: tuple[str, ...]) -> str | None:
    """What is wrong with a call: an unknown command or option; None when it exists."""
    command = typer.main.get_command(app)
    words = list(call)
    while hasattr(command, "commands") and words:
        name = words.pop(0)
        if name not in command.commands:
            return f"eilpost has no command {name}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    unknown = [word for word in words if word.startswith("-") and word not in known]
    return f"eilpost {call[0]} has no option {unknown[0]}" if unknown else None


def unknown_settings(text: str) -> set[str]:
    """Names in backquotes that look like a setting of eilpost and are none."""
    sections = Settings.model_fields
    names = {name for name in _SETTING.findall(text) if name.partition(".")[0] in sections}
    known = {f"{section}.{key}" for section, field in sections.items() for key in field.annotation.model_fields}  # type: ignore[union-attr]
    return names - known
