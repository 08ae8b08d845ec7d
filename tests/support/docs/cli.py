"""docs/reference/cli.md: every command with its arguments and options, from the argument parser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from eilpost.cli import app


def command_reference() -> str:
    """A section for each command, in the order of `eilpost --help`."""
    root = typer.main.get_command(app)
    return "\n".join(_section(words, command) for words, command in _commands(("eilpost",), root))


def _commands(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if command.hidden:
        return
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield words, command
        return
    for name, subcommand in subcommands.items():
        yield from _commands((*words, name), subcommand)


def _section(words: tuple[str, ...], command: Any) -> str:
    parameters = [parameter for parameter in command.params if not parameter.hidden]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    options = [each for each in parameters if each.param_type_name == "option"]
    usage = " ".join([*words, *(["[OPTIONS]"] if options else []), *(_metavar(each) for each in arguments)])
    lines = [f"## {' '.join(words)}", "", f"`{usage}`", "", _one_line(command.help), ""]
    rows = [(f"`{_metavar(each)}`", each) for each in arguments] + [(_option(each), each) for each in options]
    if rows:
        lines += ["| option | meaning | default |", "|---|---|---|"]
        lines += [f"| {name} | {_cell(_one_line(each.help))} | {_default(each)} |" for name, each in rows]
        lines.append("")
    text, _, examples = (command.epilog or "").partition("Examples:\n")
    if text.strip("\b \n"):
        lines += [_one_line(text), ""]
    if examples:
        lines += ["```sh", *(line.strip() for line in examples.splitlines() if line.strip()), "```", ""]
    return "\n".join(lines)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return names
    return f"{names} `{parameter.metavar or 'N'}`"  # only numbers have no name of their own


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or isinstance(value, bool) or value == "":
        return ""
    return f"`{value}`"


def _one_line(text: str | None) -> str:
    return re.sub(r"[\s\b]+", " ", text or "").strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
