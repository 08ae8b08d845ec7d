"""What all commands share: their common options, and how they speak: results on stdout, one line a fault on stderr.

Never in charge of what is said. Next: `eilpost/cli.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

EXIT_NOT_FOUND = 1
EXIT_UNUSABLE = 2

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration. Default: $EILPOST_CONFIG, ./eilpost.toml, /etc/eilpost/eilpost.toml, the demo's.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


def commands(help: str) -> typer.Typer:
    """A group of commands under one name."""
    return typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None)


def say(text: str) -> None:
    """One line on stderr."""
    print(f"eilpost: {text}", file=sys.stderr, flush=True)  # noqa: T201


def fail(text: str, status: int) -> NoReturn:
    say(text)
    raise typer.Exit(status)


def print_json(value: object) -> None:
    from eilpost.asjson import text

    print(text(value))  # noqa: T201


def misused(error: Exception) -> int | None:
    """Say what is wrong with a command line; the exit status. None: `error` is something else.

    typer brings a click of its own, or takes the one it finds, so its errors are known by what they can do.
    """
    words, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if words is None:
        return None
    text = str(words())
    if text.startswith("Usage:"):  # a group without a command: its help
        print(text, file=sys.stderr)  # noqa: T201
    else:
        hint = f"; see `{context.command_path} --help`" if context is not None else ""
        say(f"{' '.join(text.split()).rstrip('.')}{hint}")
    return EXIT_UNUSABLE
