"""`eilpost help`, `eilpost completion` and `eilpost man`; the order and the examples of the commands in help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from eilpost.terminal import EXIT_UNUSABLE, fail

# All commands, in the order of help, reference and man pages: the most used ones first.
COMMAND_GROUPS = {
    "Start": ("demo", "up", "ingress", "router", "delivery", "mailstore"),
    "Inspect": ("queue", "trace", "doctor"),
    "Users, domains and aliases": ("user", "domain", "alias"),
    "Operate": ("config", "topics", "move", "load"),
    "Other": ("help", "version", "completion", "man"),
}


class GroupedCommands(TyperGroup):
    """The commands of eilpost, ordered and listed by `COMMAND_GROUPS`."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        order = [name for names in COMMAND_GROUPS.values() for name in names]
        self.commands = dict(sorted(self.commands.items(), key=lambda command: order.index(command[0])))

    def format_commands(self, _ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for title, names in COMMAND_GROUPS.items():
            with formatter.section(title):
                rows = [(name.ljust(width), self.commands[name].get_short_help_str(formatter.width)) for name in names]
                formatter.write_dl(rows)


def examples(*lines: str) -> str:
    """The end of a command's help; `\\b` keeps click from joining the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def help_command(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="A command, like user add.")
    ] = None,
) -> None:
    """Show the help of eilpost or of a command."""
    help_context: Any = context.find_root()
    for name in command or ():
        subcommand = getattr(help_context.command, "commands", {}).get(name)
        if subcommand is None:
            fail(f"there is no command {' '.join(command or ())!r}; see `eilpost help`", EXIT_UNUSABLE)
        help_context = type(help_context)(subcommand, info_name=name, parent=help_context)
    print(help_context.get_help())  # noqa: T201


def completion(
    context: typer.Context, shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]
) -> None:
    """Print the completion script of a shell."""
    from eilpost.completion import SHELLS, script

    if shell not in SHELLS:
        fail(f"{shell!r}: bash, zsh or fish is expected", EXIT_UNUSABLE)
    print(script(context.find_root().command, shell), end="")  # noqa: T201


def man(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--dir", metavar="DIRECTORY", help="Where to write them.")] = Path(
        "var/man/man1"
    ),
) -> None:
    """Write the man pages of all commands."""
    from eilpost.completion import man_pages

    folder.mkdir(parents=True, exist_ok=True)
    pages = list(man_pages(context.find_root().command))
    for name, text in pages:
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{len(pages)} pages in {folder}; read one with: man -l {folder}/eilpost.1")  # noqa: T201
